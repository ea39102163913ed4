// GGUF files, damaged or whole, through all of ggml that a file can reach without libllama: header, validation,
// dequantizer and matrix product, with the weights in rows and in tiles. scripts/fuzz_native.py compiles it with
// sanitizers, for itself or, with -DLIBFUZZER, for libFuzzer.
//
// stdin    files, each a number of bytes, uint64, and that many bytes
// stdout   of each file its number in a line of its own, before anything is done with it; for each tensor "tensor I TYPE
//          VALID N" and N float32; in the end "refused" or "read"
//
// What a tensor needs has exactly its size, so that AddressSanitizer sees a byte beyond. Results that cannot be right
// abort, and so does a file that takes too long.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu/sherry/buffer.h"
#include "ggml.h"
#include "gguf.h"

#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <sys/time.h>
#include <unistd.h>
#include <vector>

static constexpr int     TOKENS      = 3;       // of a product
static constexpr int     THREADS     = 2;
static constexpr int64_t LONGEST_ROW = 1 << 16; // the activations of a tensor without rows need memory too

#define REQUIRE(condition, ...)                                       \
    if (!(condition)) {                                               \
        fprintf(stderr, "mutants: %s: ", #condition);                 \
        fprintf(stderr, __VA_ARGS__);                                 \
        fprintf(stderr, "\n");                                        \
        abort();                                                      \
    }

struct free_all {
    void operator()(ggml_context * context) const { ggml_free(context); }
    void operator()(gguf_context * context) const { gguf_free(context); }
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(char * bytes) const { free(bytes); }
};

using gguf_ptr    = std::unique_ptr<gguf_context, free_all>;
using context_ptr = std::unique_ptr<ggml_context, free_all>;
using buffer_ptr  = std::unique_ptr<ggml_backend_buffer, free_all>;
using bytes_ptr   = std::unique_ptr<char, free_all>;

static bytes_ptr exactly(size_t size) {
    void * bytes = nullptr;
    REQUIRE(posix_memalign(&bytes, 64, size) == 0, "%zu bytes", size);
    return bytes_ptr((char *) bytes);
}

static bool has_tiles(ggml_type type) {
    return type == GGML_TYPE_SHERRY || type == GGML_TYPE_SHERRY_G32 || type == GGML_TYPE_SHERRY_2P ||
           type == GGML_TYPE_STQ1_0;
}

// Activations that all kernels round to themselves: whole numbers, of which each 32 reach 127.
static float activation(int64_t i, int64_t token) {
    return i%32 == 0 ? 127.0f : (float) ((i*37 + token*11)%255 - 127);
}

// float32[rows, TOKENS]... of all matrices of a tensor whose bytes these are, as one product of ggml
static std::vector<float> product(const ggml_tensor * info, const char * bytes, bool in_tiles) {
    const ggml_init_params no_data = { 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    context_ptr context(ggml_init(no_data));
    ggml_tensor * w = ggml_new_tensor(context.get(), info->type, GGML_MAX_DIMS, info->ne);
    bytes_ptr  rows;
    buffer_ptr tiles;
    const size_t size = ggml_nbytes(w);
    if (in_tiles) {
        ggml_backend_buffer_type_t type = ggml_backend_cpu_sherry_buffer_type();
        tiles.reset(ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, w)));
        REQUIRE(tiles && ggml_backend_tensor_alloc(tiles.get(), w, ggml_backend_buffer_get_base(tiles.get())) ==
                GGML_STATUS_SUCCESS, "no tiles for %zu bytes", size);
        // in two parts, the first of which ends somewhere
        ggml_backend_tensor_set(w, bytes, 0, size/3);
        ggml_backend_tensor_set(w, bytes + size/3, size/3, size - size/3);
        bytes_ptr back = exactly(size);
        ggml_backend_tensor_get(w, back.get(), 0, size);
        REQUIRE(memcmp(back.get(), bytes, size) == 0, "%s: tiles give other bytes back", info->name);
    } else {
        rows = exactly(size);
        memcpy(rows.get(), bytes, size);
        w->data = rows.get();
    }

    ggml_tensor * x = ggml_new_tensor_4d(context.get(), GGML_TYPE_F32, w->ne[0], TOKENS, w->ne[2], w->ne[3]);
    std::vector<float> activations(ggml_nelements(x));
    for (size_t i = 0; i < activations.size(); ++i) {
        activations[i] = activation((int64_t) i%w->ne[0], (int64_t) i/w->ne[0]%TOKENS);
    }
    x->data = activations.data();

    ggml_tensor * y = ggml_mul_mat(context.get(), w, x);
    std::vector<float> results(ggml_nelements(y));
    y->data = results.data();

    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, y);
    ggml_cplan plan = ggml_graph_plan(graph, THREADS, nullptr);
    bytes_ptr work = exactly(plan.work_size);
    plan.work_data = (uint8_t *) work.get();
    REQUIRE(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS, "%s: no product", info->name);
    return results;
}

// Weights float32[n] of a tensor that is valid: products from rows and from tiles have the same bits, and are the sums.
static void check_products(const ggml_tensor * info, const char * bytes, const std::vector<float> & weights, bool valid) {
    const bool multiplies = info->ne[0] > 0 && info->ne[0] <= LONGEST_ROW && ggml_nelements(info) > 0 &&
                            ggml_get_type_traits_cpu(info->type)->vec_dot != nullptr;
    if (!multiplies) {
        return;
    }
#ifdef LIBFUZZER
    if (!has_tiles(info->type)) { // upstream's alone, of which some read words at odd addresses
        return;
    }
#endif
    const std::vector<float> results = product(info, bytes, false);
    if (!has_tiles(info->type)) {
        return;
    }
    const std::vector<float> of_tiles = product(info, bytes, true);
    if (!valid) {
        return;
    }
    REQUIRE(memcmp(results.data(), of_tiles.data(), results.size()*sizeof(float)) == 0, "%s: tiles differ", info->name);
    const int64_t k = info->ne[0], rows = info->ne[1];
    for (size_t i = 0; i < results.size(); ++i) { // float32[matrices, TOKENS, rows]
        const int64_t row = (int64_t) i%rows, token = (int64_t) i/rows%TOKENS, matrix = (int64_t) i/(rows*TOKENS);
        double sum = 0, largest = 0;
        for (int64_t j = 0; j < k; ++j) {
            const double term = (double) weights[(matrix*rows + row)*k + j]*activation(j, token);
            sum += term;
            largest += fabs(term);
        }
        // each block's product and each addition is rounded once
        REQUIRE(fabs(results[i] - sum) <= largest*(double) (k/32 + 2)*0x1p-23, "%s: row %" PRId64 ", token %" PRId64
                ": %g, and not %g", info->name, row, token, (double) results[i], sum);
    }
}

// whether the file is read; what it says goes to out, if there is one
static bool try_file(const uint8_t * data, size_t size, FILE * out) {
    ggml_context * tensors = nullptr;
    gguf_ptr file(gguf_init_from_buffer(data, size, { true, &tensors })); // as llama.cpp's loader does
    context_ptr owned(tensors);
    if (!file) {
        return false;
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); ++i) {
        const ggml_tensor * info = ggml_get_tensor(tensors, gguf_get_tensor_name(file.get(), i));
        REQUIRE(info != nullptr && info->type == gguf_get_tensor_type(file.get(), i), "tensor %" PRId64, i);
        const size_t begin = gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), i);
        const size_t bytes = ggml_nbytes(info);
        if (begin + bytes < begin || begin + bytes > size) { // as the loader does
            return false;
        }
        bytes_ptr exact = exactly(bytes);
        memcpy(exact.get(), data + begin, bytes);
        const bool valid = ggml_validate_row_data(info->type, exact.get(), bytes);

        const int64_t n = ggml_nelements(info);
        const ggml_to_float_t to_float = ggml_get_type_traits(info->type)->to_float;
        std::vector<float> weights;
        if (info->type == GGML_TYPE_F32 || to_float != nullptr) {
            weights.resize(n);
            if (n == 0) {
                // nothing to copy, and nowhere to
            } else if (info->type == GGML_TYPE_F32) {
                memcpy(weights.data(), exact.get(), bytes);
            } else {
                to_float(exact.get(), weights.data(), n);
            }
        }
        check_products(info, exact.get(), weights, valid);
        if (out != nullptr) {
            fprintf(out, "tensor %" PRId64 " %s %d %zu\n", i, ggml_type_name(info->type), valid, weights.size());
            if (!weights.empty()) {
                fwrite(weights.data(), sizeof(float), weights.size(), out);
            }
        }
    }
    return true;
}

static void quiet(ggml_log_level, const char *, void *) {}

#ifdef LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    ggml_log_set(quiet, nullptr);
    try_file(data, size, nullptr);
    return 0;
}
#else
// Seconds for one file, of processors and, where it waits, of the clock.
static constexpr time_t   SECONDS = 10;
static constexpr unsigned LONGEST = 600;

int main() {
    ggml_log_set(quiet, nullptr);
    uint64_t size;
    for (int number = 0; fread(&size, sizeof(size), 1, stdin) == 1; ++number) {
        const std::unique_ptr<uint8_t[]> data(new uint8_t[size]);
        REQUIRE(fread(data.get(), 1, size, stdin) == size, "stdin ends inside file %d", number);
        printf("%d\n", number);
        fflush(stdout);
        const itimerval limit = { { 0, 0 }, { SECONDS, 0 } };
        REQUIRE(setitimer(ITIMER_PROF, &limit, nullptr) == 0, "no timer");
        alarm(LONGEST);
        const bool read = try_file(data.get(), size, stdout);
        printf("%s\n", read ? "read" : "refused");
    }
    return 0;
}
#endif
