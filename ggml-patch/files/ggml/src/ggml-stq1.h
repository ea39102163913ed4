#pragma once

// Type STQ1_0: the codes of SHERRY in other places. A block has 256 weights in 64 groups, whose 4 weights lie 16 apart,
// and one scale: 1.3125 bits per weight.
//
// Either half of a block, 32 groups, has the bytes of a SHERRY block's indices if its group g is put at position
// g%2*16 + g/2 of those; only the bits of the signs change places. So every kernel of SHERRY multiplies STQ1_0 too, given
// activations in that order: type Q8_STQ1_0, blocks of Q8_SHERRY that differ in nothing else. It exists in memory only.

#include "ggml-sherry.h"

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QK_STQ1_0     256
#define STQ1_0_GROUPS (QK_STQ1_0/4)

// Bytes only, hence without alignment: 42-byte blocks break any wider one.
typedef struct {
    uint8_t qs[STQ1_0_GROUPS/2];   // nibble g%2 of byte g/2, the low one first: index of group g
    uint8_t sign[STQ1_0_GROUPS/8]; // bit g%8 of byte g/8: sign of group g
    uint8_t d[2];                  // scale, fp16, little-endian, finite, sign bit clear
} block_stq1_0;
static_assert(sizeof(block_stq1_0) == 42, "wrong stq1_0 block size/padding");
static_assert(offsetof(block_stq1_0, sign) == 32, "wrong stq1_0 block layout");
static_assert(offsetof(block_stq1_0, d) == 40, "wrong stq1_0 block layout");

// Weight p of the group at a position (0..31) of a half block.
static inline int ggml_stq1_weight(int position, int p) {
    const int g = position%16*2 + position/16;
    return g/16*64 + g%16 + 16*p;
}

// Exchanges the bits of mask with those that lie shift higher.
static inline uint32_t ggml_stq1_swap(uint32_t bits, uint32_t mask, int shift) {
    const uint32_t differ = (bits ^ bits >> shift) & mask;
    return bits ^ differ ^ differ << shift;
}

// The halves of a block as SHERRY blocks, and back.
static inline void ggml_stq1_to_sherry(const block_stq1_0 * x, block_sherry y[2]) {
    for (int half = 0; half < 2; ++half) {
        memcpy(y[half].qs, x->qs + 16*half, 16);
        memcpy(y[half].d, x->d, 2);

        const uint8_t * s = x->sign + 4*half;
        uint32_t signs = (uint32_t) s[0] | (uint32_t) s[1] << 8 | (uint32_t) s[2] << 16 | (uint32_t) s[3] << 24;
        signs = ggml_stq1_swap(signs, 0x22222222, 1); // even bits to the low half, odd ones to the high half
        signs = ggml_stq1_swap(signs, 0x0C0C0C0C, 2);
        signs = ggml_stq1_swap(signs, 0x00F000F0, 4);
        signs = ggml_stq1_swap(signs, 0x0000FF00, 8);
        for (int i = 0; i < 4; ++i) {
            y[half].signs[i] = (uint8_t) (signs >> 8*i);
        }
    }
}

static inline void ggml_stq1_from_sherry(const block_sherry x[2], block_stq1_0 * y) {
    for (int half = 0; half < 2; ++half) {
        memcpy(y->qs + 16*half, x[half].qs, 16);

        const uint8_t * s = x[half].signs;
        uint32_t signs = (uint32_t) s[0] | (uint32_t) s[1] << 8 | (uint32_t) s[2] << 16 | (uint32_t) s[3] << 24;
        signs = ggml_stq1_swap(signs, 0x0000FF00, 8);
        signs = ggml_stq1_swap(signs, 0x00F000F0, 4);
        signs = ggml_stq1_swap(signs, 0x0C0C0C0C, 2);
        signs = ggml_stq1_swap(signs, 0x22222222, 1);
        for (int i = 0; i < 4; ++i) {
            y->sign[4*half + i] = (uint8_t) (signs >> 8*i);
        }
    }
    memcpy(y->d, x[0].d, 2);
}

// As of SHERRY. Without importance the scale is the mean magnitude of the kept weights, which has the least square error.
GGML_API void    quantize_row_stq1_0_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_API size_t  quantize_stq1_0(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix);
GGML_API void    dequantize_row_stq1_0(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k);
GGML_API int64_t ggml_stq1_changed_groups(const float * x, int64_t k);
GGML_API bool    ggml_validate_stq1_0(const void * data, size_t nb);

// k is a multiple of 128: a half block is quantized by itself.
GGML_API void    quantize_row_q8_stq1_0_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

#ifdef __cplusplus
}
#endif
