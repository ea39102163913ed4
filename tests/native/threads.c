// Products of tiles by several threads equal those of one. They are in one graph, so that each of them writes where the
// one before has its tables. test_threads.py compiles this with a sanitizer.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu/sherry/buffer.h"
#include "ggml-sherry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS  4
#define K        2304 // more blocks than a thread makes tables of at a time
#define ROWS     300  // nine tiles, and rows that fill none
#define EXPERTS  4
#define USED     2
#define PRODUCTS 6

// with random values of its type
static void fill(struct ggml_tensor * tensor) {
    const size_t size = ggml_nbytes(tensor);
    char * data = malloc(size);
    for (size_t i = 0; i < size/sizeof(block_sherry) && tensor->type == GGML_TYPE_SHERRY; ++i) {
        block_sherry * block = (block_sherry *) data + i;
        for (size_t j = 0; j < sizeof(*block); ++j) {
            ((uint8_t *) block)[j] = (uint8_t) (rand() >> 8);
        }
        block->d[1] &= 0x3F; // small and positive
    }
    for (size_t i = 0; i < size/sizeof(float) && tensor->type == GGML_TYPE_F32; ++i) {
        ((float *) data)[i] = (float) rand()/RAND_MAX - 0.5f;
    }
    for (size_t i = 0; i < size/sizeof(int32_t) && tensor->type == GGML_TYPE_I32; ++i) {
        ((int32_t *) data)[i] = (int32_t) ((i/USED + i%USED)%EXPERTS); // the experts of a token differ
    }
    ggml_backend_tensor_set(tensor, data, 0, size);
    free(data);
}

int main(void) {
    const struct ggml_init_params no_data = { 1 << 20, NULL, true };
    struct ggml_context * in_tiles = ggml_init(no_data);
    struct ggml_tensor  * matrix  = ggml_new_tensor_3d(in_tiles, GGML_TYPE_SHERRY, K, ROWS, 1);
    struct ggml_tensor  * experts = ggml_new_tensor_3d(in_tiles, GGML_TYPE_SHERRY, K, ROWS, EXPERTS);
    ggml_backend_buffer_t tiles =
        ggml_backend_alloc_ctx_tensors_from_buft(in_tiles, ggml_backend_cpu_sherry_buffer_type());

    struct ggml_context * context  = ggml_init(no_data);
    struct ggml_cgraph  * graph    = ggml_new_graph(context);
    struct ggml_tensor  * products[PRODUCTS];
    const int tokens[PRODUCTS/2] = { 1, 8, 40 };
    for (int i = 0; i < PRODUCTS/2; ++i) {
        struct ggml_tensor * x   = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, tokens[i], 1);
        struct ggml_tensor * own = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, USED, tokens[i]);
        struct ggml_tensor * ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, USED, tokens[i]);
        products[2*i    ] = ggml_mul_mat(context, matrix, x);
        products[2*i + 1] = ggml_mul_mat_id(context, experts, own, ids);
        ggml_build_forward_expand(graph, products[2*i]);
        ggml_build_forward_expand(graph, products[2*i + 1]);
    }
    ggml_backend_buffer_t rest = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type());
    fill(matrix);
    fill(experts);
    for (struct ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        if (t->op == GGML_OP_NONE) {
            fill(t);
        }
    }

    ggml_backend_t cpu = ggml_backend_cpu_init();
    void * first[PRODUCTS];
    int status = 0;
    for (int run = 0; run < 6; ++run) {
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
    for (int i = 0; i < PRODUCTS; ++i) {
        free(first[i]);
    }
    ggml_backend_free(cpu);
    ggml_backend_buffer_free(tiles);
    ggml_backend_buffer_free(rest);
    ggml_free(in_tiles);
    ggml_free(context);
    return status;
}
