#include "buffer.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "mul_mat.h"
#include "tile.h"
#include "traits.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace ggml::cpu::sherry {

namespace {

class tensor_traits : public ggml::cpu::tensor_traits {
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        size = sherry::work_size(n_threads, op);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        mul_mat(params, op);
        return true;
    }
};

tensor_traits traits;

bool multiplies_tiles(const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID) && op->src[0]->buffer &&
           op->src[0]->buffer->buft == ggml_backend_cpu_sherry_buffer_type();
}

class extra_buffer_type : public ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * x       = op->src[1];
        // a view might begin or end inside a tile
        return multiplies_tiles(op) && weights->type == GGML_TYPE_SHERRY && weights->view_src == nullptr &&
               ggml_is_contiguous(weights) && x->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float) &&
               (x->buffer == nullptr || ggml_backend_buft_is_host(x->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (!multiplies_tiles(op)) {
            return nullptr;
        }
        // without traits the tiles would be taken for rows
        GGML_ASSERT(op->src[0]->view_src == nullptr && "a view of a SHERRY matrix in tiles");
        return &traits;
    }
};

// The bytes of a tensor are runs: 32 rows, which are a tile, and at the end of each matrix the rows that fill none.
struct run {
    size_t begin;
    size_t end;
    bool   is_tile;
};

run run_at(const ggml_tensor * tensor, size_t offset) {
    const size_t matrix_bytes = tensor->nb[2];
    const size_t tile_bytes   = SHERRY_TILE_ROWS*tensor->nb[1];
    const size_t tiled_bytes  = tensor->ne[1]/SHERRY_TILE_ROWS*tile_bytes;

    const size_t matrix = offset/matrix_bytes*matrix_bytes;
    const size_t inside = offset - matrix;
    if (inside >= tiled_bytes) {
        return { matrix + tiled_bytes, matrix + matrix_bytes, false };
    }
    const size_t begin = matrix + inside/tile_bytes*tile_bytes;
    return { begin, begin + tile_bytes, true };
}

void pack(const ggml_tensor * tensor, const void * rows, void * tile) {
    const size_t n_blocks = tensor->ne[0]/QK_SHERRY;
    for (size_t i = 0; i < n_blocks; ++i) {
        ggml_sherry_best_tile_kernel()->pack((const block_sherry *) rows + i, n_blocks, (char *) tile + i*SHERRY_TILE_BYTES);
    }
}

void unpack(const ggml_tensor * tensor, const void * tile, void * rows) {
    const size_t n_blocks = tensor->ne[0]/QK_SHERRY;
    for (size_t i = 0; i < n_blocks; ++i) {
        ggml_sherry_best_tile_kernel()->unpack((const char *) tile + i*SHERRY_TILE_BYTES, (block_sherry *) rows + i, n_blocks);
    }
}

// Whole runs go straight to their place; of a run that is written in part, the rest is kept.
void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const char * from = (const char *) data - offset;
    std::vector<char> rows(SHERRY_TILE_ROWS*tensor->nb[1]);
    for (size_t at = offset; at < offset + size;) {
        const run    run = run_at(tensor, at);
        const size_t end = std::min(run.end, offset + size);
        char *       own = (char *) tensor->data + run.begin;
        if (!run.is_tile) {
            memcpy((char *) tensor->data + at, from + at, end - at);
        } else if (at == run.begin && end == run.end) {
            pack(tensor, from + at, own);
        } else {
            unpack(tensor, own, rows.data());
            memcpy(rows.data() + (at - run.begin), from + at, end - at);
            pack(tensor, rows.data(), own);
        }
        at = end;
    }
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    char * to = (char *) data - offset;
    std::vector<char> rows(SHERRY_TILE_ROWS*tensor->nb[1]);
    for (size_t at = offset; at < offset + size;) {
        const run    run = run_at(tensor, at);
        const size_t end = std::min(run.end, offset + size);
        if (run.is_tile) {
            unpack(tensor, (const char *) tensor->data + run.begin, rows.data());
            memcpy(to + at, rows.data() + (at - run.begin), end - at);
        } else {
            memcpy(to + at, (const char *) tensor->data + at, end - at);
        }
        at = end;
    }
}

const char * get_name(ggml_backend_buffer_type_t) {
    return "CPU_SHERRY";
}

size_t get_alignment(ggml_backend_buffer_type_t) {
    return TENSOR_ALIGNMENT;
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) {
        return nullptr;
    }
    buffer->buft                = buft;
    buffer->iface.memset_tensor = nullptr;
    buffer->iface.set_tensor    = set_tensor;
    buffer->iface.get_tensor    = get_tensor;
    buffer->iface.set_tensor_2d = nullptr;
    buffer->iface.get_tensor_2d = nullptr;
    buffer->iface.cpy_tensor    = nullptr;
    return buffer;
}

}  // namespace

}  // namespace ggml::cpu::sherry

ggml_backend_buffer_type_t ggml_backend_cpu_sherry_buffer_type(void) {
    static ggml::cpu::sherry::extra_buffer_type context;
    static ggml_backend_buffer_type             type = {
        /* .iface   = */ {
            /* .get_name       = */ ggml::cpu::sherry::get_name,
            /* .alloc_buffer   = */ ggml::cpu::sherry::alloc_buffer,
            /* .get_alignment  = */ ggml::cpu::sherry::get_alignment,
            /* .get_max_size   = */ nullptr, // no limit
            /* .get_alloc_size = */ nullptr, // ggml_nbytes
            /* .is_host        = */ nullptr, // no: nobody else knows tiles
        },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ &context,
    };
    return &type;
}
