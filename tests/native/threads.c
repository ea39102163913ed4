// Products by several threads equal those of one, for all types, from tiles and from rows as a file has them. They are in
// one graph, so that each of them writes where the one before has its tables. test_threads.py compiles this with a
// sanitizer. It prints a sum of the bits of all results, which is the same whichever kernel multiplies.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu/sherry/buffer.h"
#include "ggml.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS  4
#define K        2304 // more blocks than a thread makes tables of at a time
#define ROWS     100  // three tiles, and rows that fill none
#define EXPERTS  3
#define USED     2
#define TYPES    4
#define TOKENS   3
#define PRODUCTS (TYPES*2*TOKENS*2)

static const enum ggml_type types[TYPES] = {
    GGML_TYPE_SHERRY, GGML_TYPE_SHERRY_G32, GGML_TYPE_SHERRY_2P, GGML_TYPE_STQ1_0,
};

// with random values of its type
static void fill(struct ggml_tensor * tensor) {
    const int64_t n = ggml_nelements(tensor);
    float   * floats = malloc(n*sizeof(*floats));
    int32_t * ids    = malloc(n*sizeof(*ids));
    char    * blocks = malloc(ggml_nbytes(tensor));
    for (int64_t i = 0; i < n; ++i) {
        floats[i] = (float) rand()/RAND_MAX - 0.5f;
        ids[i]    = (int32_t) ((i/USED + i%USED)%EXPERTS); // the experts of a token differ
    }
    const void * data = tensor->type == GGML_TYPE_I32 ? (void *) ids : floats;
    if (ggml_is_quantized(tensor->type)) {
        ggml_quantize_chunk(tensor->type, floats, blocks, 0, ggml_nrows(tensor), tensor->ne[0], NULL);
        data = blocks;
    }
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
    free(floats);
    free(ids);
    free(blocks);
}

static void fill_all(struct ggml_context * context) {
    for (struct ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        if (t->op == GGML_OP_NONE) {
            fill(t);
        }
    }
}

int main(void) {
    const struct ggml_init_params no_data = { 1 << 20, NULL, true };
    struct ggml_context * in_tiles = ggml_init(no_data);
    struct ggml_context * context  = ggml_init(no_data); // all else
    struct ggml_cgraph  * graph    = ggml_new_graph(context);
    struct ggml_tensor  * products[PRODUCTS];
    const int tokens[TOKENS] = { 1, 12, 40 };
    int n = 0;
    for (int i = 0; i < 2*TYPES; ++i) {
        struct ggml_context * place   = i < TYPES ? in_tiles : context;
        struct ggml_tensor  * matrix  = ggml_new_tensor_3d(place, types[i%TYPES], K, ROWS, 1);
        struct ggml_tensor  * experts = ggml_new_tensor_3d(place, types[i%TYPES], K, ROWS, EXPERTS);
        for (int j = 0; j < TOKENS; ++j) {
            struct ggml_tensor * x   = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, tokens[j], 1);
            struct ggml_tensor * own = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, USED, tokens[j]);
            struct ggml_tensor * ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, USED, tokens[j]);
            products[n++] = ggml_mul_mat(context, matrix, x);
            products[n++] = ggml_mul_mat_id(context, experts, own, ids);
        }
    }
    for (int i = 0; i < PRODUCTS; ++i) {
        ggml_build_forward_expand(graph, products[i]);
    }
    ggml_backend_buffer_t tiles =
        ggml_backend_alloc_ctx_tensors_from_buft(in_tiles, ggml_backend_cpu_sherry_buffer_type());
    ggml_backend_buffer_t rest = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type());
    fill_all(in_tiles);
    fill_all(context);

    ggml_backend_t cpu = ggml_backend_cpu_init();
    void * first[PRODUCTS];
    int status = 0;
    for (int run = 0; run < 3; ++run) {
        ggml_backend_cpu_set_n_threads(cpu, run == 0 ? 1 : THREADS);
        if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS) {
            return 1;
        }
        for (int i = 0; i < PRODUCTS; ++i) {
            const size_t size = ggml_nbytes(products[i]);
            if (run == 0) {
                first[i] = malloc(size);
                memcpy(first[i], products[i]->data, size);
            } else if (memcmp(first[i], products[i]->data, size) != 0) {
                fprintf(stderr, "run %d: product %d differs from one thread's\n", run, i);
                status = 2;
            }
        }
    }
    uint64_t sum = 0xCBF29CE484222325; // FNV-1a
    for (int i = 0; i < PRODUCTS; ++i) {
        for (size_t j = 0; j < ggml_nbytes(products[i]); ++j) {
            sum = (sum ^ ((uint8_t *) first[i])[j])*0x100000001B3;
        }
        free(first[i]);
    }
    printf("%016" PRIx64 "\n", sum);
    ggml_backend_free(cpu);
    ggml_backend_buffer_free(tiles);
    ggml_backend_buffer_free(rest);
    ggml_free(in_tiles);
    ggml_free(context);
    return status;
}
