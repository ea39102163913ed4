#pragma once

// Type SHERRY: in every 4 consecutive weights of a row one is zero and three have the same magnitude, which is
// shared by 128 weights. 4*2^3 = 32 patterns = 5 bits for 4 weights; with the fp16 scale 1.375 bits per weight.
//
// The three weights that are not zero are called first, second and third, in order:
//
//     sign  = first is negative
//     index = zero_pos << 2 | (third differs in sign from first) << 1 | (second differs in sign from first)
//
// Type Q8_SHERRY: the activations that SHERRY is multiplied with. It exists in memory only, never in a file.

#include "ggml.h"

#include <assert.h> // static_assert
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QK_SHERRY     128
#define SHERRY_GROUPS (QK_SHERRY/4)

// Bytes only, hence without alignment: 22-byte blocks break any wider one.
typedef struct {
    uint8_t qs[SHERRY_GROUPS/2];    // low nibble of byte j: index of group j, high nibble: of group j+16
    uint8_t signs[SHERRY_GROUPS/8]; // bit g%8 of byte g/8: sign of group g
    uint8_t d[2];                   // scale, fp16, little-endian, finite, sign bit clear
} block_sherry;
static_assert(sizeof(block_sherry) == 22, "wrong sherry block size/padding");
static_assert(offsetof(block_sherry, signs) == 16, "wrong sherry block layout");
static_assert(offsetof(block_sherry, d) == 20, "wrong sherry block layout");

// 128 activations in four planes, so that SIMD multiplies plane p with the p-th weight of all groups at once.
typedef struct {
    float   d;             // scale: largest magnitude / 127
    int32_t sum;           // of qs: turns sums over weights stored as 0, 1, 2 into sums over -1, 0, 1
    int8_t  qs[QK_SHERRY]; // -127..127; qs[p*32 + g] is activation 4*g + p
} block_q8_sherry;
static_assert(sizeof(block_q8_sherry) == 136, "wrong q8_sherry block size/padding");
static_assert(offsetof(block_q8_sherry, qs) == 8, "wrong q8_sherry block layout");

// The 16 patterns of sign 0, four 2-bit fields w + 1 each, weight 0 lowest. Sign 1: 0xAA - pattern.
#define SHERRY_PATTERNS 0xA9, 0x89, 0x29, 0x09, 0xA6, 0x86, 0x26, 0x06, 0x9A, 0x92, 0x1A, 0x12, 0x6A, 0x62, 0x4A, 0x42

// Weights of a block in units of its scale: -1, 0, 1.
static inline void ggml_sherry_decode(const block_sherry * x, int8_t w[QK_SHERRY]) {
    static const uint8_t patterns[16] = { SHERRY_PATTERNS };

    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        const int index   = g < 16 ? x->qs[g] & 0xF : x->qs[g - 16] >> 4;
        const int sign    = x->signs[g/8] >> g%8 & 1;
        const int pattern = sign ? 0xAA - patterns[index] : patterns[index];

        for (int p = 0; p < 4; ++p) {
            w[4*g + p] = (int8_t) ((pattern >> 2*p & 3) - 1);
        }
    }
}

GGML_API void   quantize_row_sherry_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_API size_t quantize_sherry(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix);
GGML_API void   dequantize_row_sherry(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k);

// How many groups of the k weights cannot stay what they are: of those with two or more zeros all but one become positive,
// and all weights of a block become zero where fp16 rounds its scale to zero. Blocks of zeros only are not counted.
GGML_API int64_t ggml_sherry_changed_groups(const float * x, int64_t k);

GGML_API void   quantize_row_q8_sherry_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

// Prints what is wrong to stderr, as ggml_validate_row_data does. nb is the number of blocks.
GGML_API bool   ggml_validate_sherry(const void * data, size_t nb);

// Parts that STQ1_0 and SHERRY_G32 share: a run of n weights with one scale, 256 at most, in as many blocks as it takes;
// n activations in four planes of n/4, whose scale is returned; and the check of a scale.
void    ggml_sherry_quantize_run(const float * w, const float * importance, int n, block_sherry * y);
int64_t ggml_sherry_changed_in_run(const float * w, int n);
float   ggml_sherry_quantize_activations(const float * x, int n, int8_t * qs);
bool    ggml_sherry_validate_scale(const char * function, size_t block, const uint8_t d[2]);

#ifdef __cplusplus
}
#endif
