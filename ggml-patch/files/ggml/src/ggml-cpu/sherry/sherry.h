#pragma once

// CPU kernels of types SHERRY and Q8_SHERRY (ggml-sherry.h). sherry.c picks one for the instructions that this library
// is compiled for. The others stay callable beside it: tests hold them to the generic ones.

#include "ggml-backend.h"
#include "ggml-sherry.h"

#ifdef __cplusplus
extern "C" {
#endif

// from_float of the two types
GGML_BACKEND_API void quantize_row_sherry   (const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_BACKEND_API void quantize_row_q8_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

// vec_dot: *s = sum of x*y over n weights, a multiple of 128; one row, the strides bs, bx, by are not used
GGML_BACKEND_API void ggml_vec_dot_sherry_q8_sherry        (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_sherry_q8_sherry_generic(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_sherry_q8_sherry_avx2   (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_sherry_q8_sherry_neon   (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

// the integers inside vec_dot: sums[i] = sum over block i of weight (-1, 0, 1) * qs. Every kernel gives the same.
GGML_BACKEND_API void ggml_sherry_isums_generic(int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);
GGML_BACKEND_API void ggml_sherry_isums_avx2   (int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);
GGML_BACKEND_API void ggml_sherry_isums_neon   (int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);

// Q8_SHERRY, bytes equal to quantize_row_q8_sherry_ref
GGML_BACKEND_API void quantize_row_q8_sherry_avx2(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_BACKEND_API void quantize_row_q8_sherry_neon(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

#ifdef __cplusplus
}
#endif
