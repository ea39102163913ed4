#pragma once

// Type SHERRY_2P: two planes, which are SHERRY's blocks (ggml-sherry.h) and add up: weight = d0*c0 + d1*c1. 128 weights in
// 44 bytes, 2.75 bits per weight. It is multiplied with Q8_SHERRY.

#include "ggml-sherry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QK_SHERRY_2P QK_SHERRY
#define SHERRY_2P_PLANES 2

// So a row of n blocks is a row of SHERRY of 2*n blocks, of which two meet the same activations.
typedef struct {
    block_sherry plane[SHERRY_2P_PLANES];
} block_sherry_2p;
static_assert(sizeof(block_sherry_2p) == 44, "wrong sherry_2p block size/padding");

// Blocks that are sums of two planes stay what they are, but for the scale of a single plane, which is rounded to fp16.
// Others are rounded to the sums that cost least, weighted by importance where it is given.
GGML_API void    quantize_row_sherry_2p_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_API size_t  quantize_sherry_2p(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix);
GGML_API void    dequantize_row_sherry_2p(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k);
GGML_API bool    ggml_validate_sherry_2p(const void * data, size_t nb);

// How many of the k weights are in blocks that are rounded.
GGML_API int64_t ggml_sherry_2p_rounded_weights(const float * x, int64_t k);

#ifdef __cplusplus
}
#endif
