#pragma once

// What the row kernels of all instruction sets have in common: the way through a row, and the functions for each type of
// weights. row-X.c first defines, for its instructions,
//
//     isums                               a register of parts of a sum
//     signs_at                            where the bits of the signs lie: sherry_signs(), stq1_0_signs()
//     isum(qs, signs, at, y)              the sum over 128 weights of weight*y->qs, in parts
//     reduce_isum(isums)                  the sum of the parts
//     add_scaled(sum, isum, d, y)         sum + isum times both scales, as row.h has it
//     PREFETCH(x)                         asks for what comes some blocks after x, where that helps
//     largest(x, n)                       of n magnitudes, 128 or 32, infinity and NaN being above all numbers
//     sherry_planes(x, id, qs)            128 activations times id, rounded, in the order of a type; returns their sum
//     stq1_0_planes(x, id, qs)
//     g32_planes(x, id, qs)               32 activations, no sum
//
// then includes this, and ends with ROW_KERNEL(X).

#include "isa.h"
#include "row.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// A block of weights is one or more parts of 128: 16 bytes of indices for each, then 4 bytes of signs for each, then one
// scale. The number of parts, the places of signs and the order of planes are constants where these are inlined.

INLINE void isums_row(int n, int32_t * sums, const uint8_t * x, const int parts, signs_at at, const block_q8_sherry * y) {
    for (int i = 0; i < n/QK_SHERRY; i += parts, x += 20*parts + 2) {
        for (int j = 0; j < parts; ++j) {
            sums[i + j] = reduce_isum(isum(x + 16*j, x + 16*parts + 4*j, at, y + i + j));
        }
    }
}

INLINE float dot_row(int n, const uint8_t * x, const int parts, signs_at at, const block_q8_sherry * y) {
    float sum = 0;
    for (int i = 0; i < n/(parts*QK_SHERRY); ++i, x += 20*parts + 2, y += parts) {
        PREFETCH(x);
        UNROLL for (int j = 0; j < parts; ++j) {
            sum = add_scaled(sum, reduce_isum(isum(x + 16*j, x + 16*parts + 4*j, at, y + j)), x + 20*parts, y + j);
        }
    }
    return sum;
}

INLINE void quantize_row(const float * GGML_RESTRICT x, block_q8_sherry * GGML_RESTRICT y, int64_t k,
                         int32_t (* planes)(const float *, float, int8_t *)) {
    assert(k % QK_SHERRY == 0);
    for (int64_t i = 0; i < k/QK_SHERRY; ++i, x += QK_SHERRY, ++y) {
        const float amax = largest(x, QK_SHERRY);
        if (!isfinite(amax) || amax < 0x1p-119f) {
            memset(y, 0, sizeof(*y));
            y->d = isfinite(amax) ? 0 : NAN;
            continue;
        }
        y->sum = planes(x, 127.0f/amax, y->qs);
        y->d   = amax/127.0f;
    }
}

static void quantize_for_g32(const float * GGML_RESTRICT x, void * GGML_RESTRICT vy, int64_t k) {
    assert(k % QK_SHERRY_G32 == 0);
    block_q8_sherry_g32 * GGML_RESTRICT y = vy;
    for (int64_t i = 0; i < k/QK_SHERRY_G32; ++i, x += QK_SHERRY_G32, ++y) {
        const float amax = largest(x, QK_SHERRY_G32);
        if (!isfinite(amax) || amax < 0x1p-119f) {
            memset(y, 0, sizeof(*y));
            y->d = isfinite(amax) ? 0 : NAN;
            continue;
        }
        g32_planes(x, 127.0f/amax, y->qs);
        y->d = amax/127.0f;
    }
}

#define ROW_OPS(type, parts)                                                                                           \
    static void quantize_for_##type(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {                \
        quantize_row(x, y, k, type##_planes);                                                                          \
    }                                                                                                                  \
    static void isums_##type(int n, int32_t * sums, const void * x, const void * y) {                                  \
        isums_row(n, sums, x, parts, type##_signs(), y);                                                               \
    }                                                                                                                  \
    static void vec_dot_##type(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT x, size_t bx,     \
                               const void * GGML_RESTRICT y, size_t by, int nrc) {                                     \
        assert(n % ((parts)*QK_SHERRY) == 0);                                                                          \
        SHERRY_ONE_ROW(bs, bx, by, nrc);                                                                               \
        *s = dot_row(n, x, parts, type##_signs(), y);                                                                  \
    }

ROW_OPS(sherry, 1)
ROW_OPS(stq1_0, 2)

static void isums_two(int n, int32_t * sums, const void * vx, const void * vy) {
    const block_sherry    * x = vx;
    const block_q8_sherry * y = vy;
    for (int i = 0; i < n/QK_SHERRY; ++i) {
        for (int p = 0; p < SHERRY_2P_PLANES; ++p, ++x) {
            *sums++ = reduce_isum(isum(x->qs, x->signs, sherry_signs(), y + i));
        }
    }
}

static void vec_dot_two(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx,
                        const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_SHERRY_2P == 0);
    SHERRY_ONE_ROW(bs, bx, by, nrc);
    const block_sherry    * x = vx;
    const block_q8_sherry * y = vy;
    const signs_at at = sherry_signs();

    float sum = 0;
    for (int i = 0; i < n/QK_SHERRY; ++i, ++y) {
        PREFETCH(x);
        UNROLL for (int p = 0; p < SHERRY_2P_PLANES; ++p, ++x) {
            sum = add_scaled(sum, reduce_isum(isum(x->qs, x->signs, at, y)), x->d, y);
        }
    }
    *s = sum;
}

#define ROW_KERNEL(isa)                                                               \
    const struct ggml_sherry_row_kernel ggml_sherry_row_##isa = {                     \
        .name   = #isa,                                                               \
        .sherry = { quantize_for_sherry, isums_sherry, vec_dot_sherry },              \
        .stq1_0 = { quantize_for_stq1_0, isums_stq1_0, vec_dot_stq1_0 },              \
        .g32    = { quantize_for_g32, ggml_sherry_isums_g32, ggml_sherry_vec_dot_g32 }, \
        .two    = { quantize_for_sherry, isums_two, vec_dot_two },                    \
    };
