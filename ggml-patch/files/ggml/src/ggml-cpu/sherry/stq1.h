#pragma once

// CPU kernels of types STQ1_0 and Q8_STQ1_0 (ggml-stq1.h): those of SHERRY, told where the bits of the signs lie.

#include "ggml-backend.h"
#include "ggml-stq1.h"
#include "sherry.h"

#ifdef __cplusplus
extern "C" {
#endif

// from_float of the two types; k is a multiple of 256, of 128
GGML_BACKEND_API void quantize_row_stq1_0   (const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_BACKEND_API void quantize_row_q8_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

// vec_dot: *s = sum of x*y over n weights, a multiple of 256; one row, the strides bs, bx, by are not used
GGML_BACKEND_API void ggml_vec_dot_stq1_0_q8_stq1_0        (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_stq1_0_q8_stq1_0_generic(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_stq1_0_q8_stq1_0_avx2   (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);
GGML_BACKEND_API void ggml_vec_dot_stq1_0_q8_stq1_0_neon   (int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

// the integers inside vec_dot: sums[i] = sum over half block i of weight (-1, 0, 1) * qs. Every kernel gives the same.
GGML_BACKEND_API void ggml_stq1_isums_generic(int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);
GGML_BACKEND_API void ggml_stq1_isums_avx2   (int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);
GGML_BACKEND_API void ggml_stq1_isums_neon   (int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy);

// Q8_STQ1_0, bytes equal to quantize_row_q8_stq1_0_ref
GGML_BACKEND_API void quantize_row_q8_stq1_0_avx2(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_BACKEND_API void quantize_row_q8_stq1_0_neon(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

#ifdef __cplusplus
}
#endif
