#include "buffer.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml-stq1.h"
#include "mul_mat.h"
#include "tile.h"
#include "traits.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace ggml::cpu::sherry {

namespace {

class tensor_traits : public ggml::cpu::tensor_traits {
public:
    explicit tensor_traits(bool in_tiles) : in_tiles(in_tiles) {}

private:
    const bool in_tiles;

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        size = sherry::work_size(n_threads, op, in_tiles);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        mul_mat(params, op, in_tiles);
        return true;
    }
};

tensor_traits of_tiles(true);
tensor_traits of_rows(false);

bool has_tiles(ggml_type type) {
    return type == GGML_TYPE_SHERRY || type == GGML_TYPE_STQ1_0 || type == GGML_TYPE_SHERRY_G32 ||
           type == GGML_TYPE_SHERRY_2P;
}

bool multiplies(const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID;
}

bool is_in_tiles(const ggml_tensor * weights) {
    return weights->buffer && weights->buffer->buft == ggml_backend_cpu_sherry_buffer_type();
}

// of a result and activations
bool are_floats(const ggml_tensor * op) {
    return op->src[1]->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float);
}

class extra_buffer_type : public ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * x       = op->src[1];
        // a view might begin or end inside a tile
        return multiplies(op) && is_in_tiles(weights) && has_tiles(weights->type) && weights->view_src == nullptr &&
               ggml_is_contiguous(weights) && are_floats(op) &&
               (x->buffer == nullptr || ggml_backend_buft_is_host(x->buffer->buft));
    }

    // ggml asks for all operations that the CPU computes, also for those whose weights are not in this type of memory
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (!multiplies(op)) {
            return nullptr;
        }
        const ggml_tensor * weights = op->src[0];
        if (is_in_tiles(weights)) {
            // without traits the tiles would be taken for rows
            GGML_ASSERT(weights->view_src == nullptr && "a view of a matrix in tiles");
            return &of_tiles;
        }
        // whole blocks lie one after the other, and there is a tile of rows
        const size_t block = ggml_type_size(weights->type);
        const bool   rows  = has_tiles(weights->type) && weights->nb[0] == block && weights->nb[1]%block == 0;
        return rows && weights->ne[1] >= SHERRY_TILE_ROWS && are_floats(op) ? &of_rows : nullptr;
    }
};

// The bytes of a tensor in a file are runs: 32 rows, which are a tile, and at the end of each matrix single rows.
struct run {
    const ggml_tensor * tensor;

    size_t begin; // in the file
    size_t end;
    bool   is_tile;
    char * kept;

    run(const ggml_tensor * tensor, size_t offset) : tensor(tensor) {
        const int64_t row    = offset/tensor->nb[1];
        const int64_t inside = row%tensor->ne[1];
        is_tile = inside < tensor->ne[1]/SHERRY_TILE_ROWS*SHERRY_TILE_ROWS;

        const int64_t first = is_tile ? row - inside%SHERRY_TILE_ROWS : row;
        begin = first*tensor->nb[1];
        end   = begin + (is_tile ? SHERRY_TILE_ROWS : 1)*tensor->nb[1];
        kept  = (char *) tensor->data + first*kept_row_bytes(tensor);
    }

    // Of SHERRY, as which tiles are packed: rows of SHERRY_2P have two for 128 weights, and rows end inside a block of
    // SHERRY_G32, four blocks of a file: it is filled up.
    static size_t n_blocks(const ggml_tensor * tensor) {
        const size_t n = (tensor->ne[0] + QK_SHERRY - 1)/QK_SHERRY;
        return tensor->type == GGML_TYPE_SHERRY_2P ? SHERRY_2P_PLANES*n : n;
    }

    static size_t tile_bytes(const ggml_tensor * tensor) {
        return tensor->type == GGML_TYPE_SHERRY_G32 ? SHERRY_G32_TILE_BYTES : SHERRY_TILE_BYTES;
    }

    static size_t kept_row_bytes(const ggml_tensor * tensor) {
        return n_blocks(tensor)*tile_bytes(tensor)/SHERRY_TILE_ROWS;
    }

    void write(const char * rows) const {
        if (!is_tile) {
            write_row(rows);
            return;
        }
        const auto * kernel = ggml_sherry_chosen_tile_kernel();
        for (size_t i = 0; i < n_blocks(tensor); ++i) {
            char * tile = kept + i*tile_bytes(tensor);
            switch (tensor->type) {
                case GGML_TYPE_SHERRY:
                case GGML_TYPE_SHERRY_2P:
                    kernel->pack((const block_sherry *) rows + i, n_blocks(tensor), tile);
                    break;
                case GGML_TYPE_STQ1_0: // two at once
                    if (i%2 == 0) {
                        ggml_sherry_pack_stq1_0(kernel, (const block_stq1_0 *) rows + i/2, n_blocks(tensor)/2, tile);
                    }
                    break;
                default:
                    ggml_sherry_pack_g32(kernel, (const block_sherry_g32 *) rows + i*SHERRY_G32_SCALES, n_g32(), n_g32(i), tile);
            }
        }
    }

    void read(char * rows) const {
        if (!is_tile) {
            read_row(rows);
            return;
        }
        const auto * kernel = ggml_sherry_chosen_tile_kernel();
        std::vector<block_sherry> halves(tensor->type == GGML_TYPE_STQ1_0 ? SHERRY_TILE_ROWS*n_blocks(tensor) : 0);
        for (size_t i = 0; i < n_blocks(tensor); ++i) {
            const char * tile = kept + i*tile_bytes(tensor);
            switch (tensor->type) {
                case GGML_TYPE_SHERRY:
                case GGML_TYPE_SHERRY_2P:
                    kernel->unpack(tile, (block_sherry *) rows + i, n_blocks(tensor));
                    break;
                case GGML_TYPE_STQ1_0:
                    kernel->unpack(tile, &halves[i], n_blocks(tensor));
                    break;
                default:
                    ggml_sherry_unpack_g32(kernel, tile, n_g32(i), (block_sherry_g32 *) rows + i*SHERRY_G32_SCALES, n_g32());
            }
        }
        for (size_t i = 0; i < halves.size(); i += 2) {
            ggml_stq1_from_sherry(&halves[i], (block_stq1_0 *) rows + i/2);
        }
    }

private:
    // blocks of SHERRY_G32: of a row, and of those the i-th four
    size_t n_g32() const { return tensor->ne[0]/QK_SHERRY_G32; }
    int    n_g32(size_t i) const { return (int) std::min<size_t>(SHERRY_G32_SCALES, n_g32() - i*SHERRY_G32_SCALES); }

    void write_row(const char * row) const {
        if (tensor->type != GGML_TYPE_STQ1_0) {
            memcpy(kept, row, tensor->nb[1]);
            return;
        }
        for (size_t i = 0; i < n_blocks(tensor); i += 2) {
            ggml_stq1_to_sherry((const block_stq1_0 *) row + i/2, (block_sherry *) kept + i);
        }
    }

    void read_row(char * row) const {
        if (tensor->type != GGML_TYPE_STQ1_0) {
            memcpy(row, kept, tensor->nb[1]);
            return;
        }
        for (size_t i = 0; i < n_blocks(tensor); i += 2) {
            ggml_stq1_from_sherry((const block_sherry *) kept + i, (block_stq1_0 *) row + i/2);
        }
    }
};

// Whole runs go straight to their place; of a run that is written in part, the rest is kept.
void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const char * from = (const char *) data - offset;
    std::vector<char> rows(SHERRY_TILE_ROWS*tensor->nb[1]);
    for (size_t at = offset; at < offset + size;) {
        const run    run(tensor, at);
        const size_t end = std::min(run.end, offset + size);
        if (at == run.begin && end == run.end) {
            run.write(from + at);
        } else {
            run.read(rows.data());
            memcpy(rows.data() + (at - run.begin), from + at, end - at);
            run.write(rows.data());
        }
        at = end;
    }
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    char * to = (char *) data - offset;
    std::vector<char> rows(SHERRY_TILE_ROWS*tensor->nb[1]);
    for (size_t at = offset; at < offset + size;) {
        const run    run(tensor, at);
        const size_t end = std::min(run.end, offset + size);
        run.read(rows.data());
        memcpy(to + at, rows.data() + (at - run.begin), end - at);
        at = end;
    }
}

size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    return has_tiles(tensor->type) ? ggml_nrows(tensor)*run::kept_row_bytes(tensor) : ggml_nbytes(tensor);
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
            /* .get_alloc_size = */ ggml::cpu::sherry::get_alloc_size,
            /* .is_host        = */ nullptr, // no: nobody else knows tiles
        },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ &context,
    };
    return &type;
}
