#pragma once

// Type SHERRY_G32: as SHERRY (ggml-sherry.h), but with a scale for 32 weights: 7 bytes, 1.75 bits per weight.
//
// Type Q8_SHERRY_G32: the activations that it is multiplied with, in memory only.

#include "ggml-sherry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QK_SHERRY_G32     32
#define SHERRY_G32_GROUPS (QK_SHERRY_G32/4)

typedef struct {
    uint8_t qs[SHERRY_G32_GROUPS/2]; // low nibble of byte j: index of group j, high nibble: of group j+4
    uint8_t signs;                   // bit g: sign of group g
    uint8_t d[2];                    // scale, fp16, little-endian, finite, sign bit clear
} block_sherry_g32;
static_assert(sizeof(block_sherry_g32) == 7, "wrong sherry_g32 block size/padding");

typedef struct {
    float  d;                 // scale: largest magnitude / 127
    int8_t qs[QK_SHERRY_G32]; // qs[p*8 + g] is activation 4*g + p
} block_q8_sherry_g32;
static_assert(sizeof(block_q8_sherry_g32) == 36, "wrong q8_sherry_g32 block size/padding");

// Weights of a block in units of its scale: -1, 0, 1.
GGML_API void ggml_sherry_g32_decode(const block_sherry_g32 * x, int8_t w[QK_SHERRY_G32]);

// The codes of up to 4 blocks as those of a SHERRY block, group after group, and back. Blocks that are missing have code
// 0. Scales are left to the caller.
GGML_API void ggml_sherry_g32_join (const block_sherry_g32 * x, int n_blocks, block_sherry * y);
GGML_API void ggml_sherry_g32_split(const block_sherry * x, int n_blocks, block_sherry_g32 * y);

// As of SHERRY.
GGML_API void    quantize_row_sherry_g32_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);
GGML_API size_t  quantize_sherry_g32(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix);
GGML_API void    dequantize_row_sherry_g32(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k);
GGML_API int64_t ggml_sherry_g32_changed_groups(const float * x, int64_t k);
GGML_API bool    ggml_validate_sherry_g32(const void * data, size_t nb);
GGML_API void    quantize_row_q8_sherry_g32_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k);

#ifdef __cplusplus
}
#endif
