#pragma once

// Kernels that multiply one row at a time: the rows that fill no tile (tile.h), and what mul_mat.cpp does not take. They differ in
// the instructions they use. The one for the instructions that this library is compiled for is behind ggml's CPU traits;
// the others stay callable beside it: tests hold them to the generic one.

#include "ggml-cpu.h"
#include "ggml-sherry-2p.h"
#include "ggml-sherry-g32.h"
#include "ggml-stq1.h"

#ifdef __cplusplus
extern "C" {
#endif

// what a kernel does for one type of weights
struct ggml_sherry_row_ops {
    // k activations, a multiple of 128, or of 32 for SHERRY_G32, to blocks of the type that these weights are multiplied with. Every kernel gives
    // the same bytes.
    ggml_from_float_t quantize;

    // the integers inside vec_dot: sums[i] = sum of weight (-1, 0, 1) * qs over the i-th 128 (or 32) of n weights. Every kernel
    // gives the same.
    void (*isums)(int n, int32_t * sums, const void * x, const void * y);

    // *s = the sum of x*y over n weights, whole blocks: from 0, s = fma(sum over 128 (or 32) weights, scale of x * scale of y, s),
    // as tiles have it. One row, the strides bs, bx, by are not used.
    ggml_vec_dot_t vec_dot;
};

struct ggml_sherry_row_kernel {
    const char * name;

    struct ggml_sherry_row_ops sherry; // SHERRY with Q8_SHERRY
    struct ggml_sherry_row_ops stq1_0; // STQ1_0 with Q8_STQ1_0
    struct ggml_sherry_row_ops g32;    // SHERRY_G32 with Q8_SHERRY_G32
    struct ggml_sherry_row_ops two;    // SHERRY_2P with Q8_SHERRY: of 128 weights isums has two sums, the first plane's first
};

// the one for the instructions that this library is compiled for
GGML_BACKEND_API const struct ggml_sherry_row_kernel * ggml_sherry_best_row_kernel(void);

// by name, for tests and benches: "generic", "avx2", "neon"; NULL if this library has no such kernel
GGML_BACKEND_API const struct ggml_sherry_row_kernel * ggml_sherry_row_kernel_named(const char * name);

extern const struct ggml_sherry_row_kernel ggml_sherry_row_generic;
extern const struct ggml_sherry_row_kernel ggml_sherry_row_avx2;
extern const struct ggml_sherry_row_kernel ggml_sherry_row_neon;

// at the head of a vec_dot, which has more arguments than it needs
#define SHERRY_ONE_ROW(bs, bx, by, nrc) \
    assert((nrc) == 1);                 \
    GGML_UNUSED(bs);                    \
    GGML_UNUSED(bx);                    \
    GGML_UNUSED(by);                    \
    GGML_UNUSED(nrc)

// ggml's CPU traits of the types: from_float of weights, from_float of activations, vec_dot
void quantize_row_sherry   (const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void quantize_row_q8_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void ggml_vec_dot_sherry_q8_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

void quantize_row_stq1_0   (const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void quantize_row_q8_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void ggml_vec_dot_stq1_0_q8_stq1_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

void quantize_row_sherry_g32   (const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void quantize_row_q8_sherry_g32(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void ggml_vec_dot_sherry_g32_q8_sherry_g32(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

void quantize_row_sherry_2p(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
void ggml_vec_dot_sherry_2p_q8_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc);

// of SHERRY_G32, whose rows are multiplied in tiles all but a few: no set of instructions has its own
void ggml_sherry_isums_g32  (int n, int32_t * sums, const void * x, const void * y);
void ggml_sherry_vec_dot_g32(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT x, size_t bx, const void * GGML_RESTRICT y, size_t by, int nrc);

#ifdef __cplusplus
}
#endif
