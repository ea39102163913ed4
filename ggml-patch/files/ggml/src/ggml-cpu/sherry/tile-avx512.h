#pragma once

// What tile-avx512.c and tile-avx512vbmi.c share: codes of rows, where a row lies in a tile of words, products of four, and
// how a sum of 16 bits becomes a float.

#include "tile-x86.h"

#if defined(SHERRY_ISA_AVX512)

#include <string.h>

// a loop over tiles or tokens
#define EACH(i, n) UNROLL for (int i = 0; i < (n); ++i)

// Weights come from memory. The processor sees where they go on inside a row of blocks, but not from one row of tiles to
// the next, and four rows at once are more than it follows well: asking for the lines ahead makes it 1.5 to 2 times
// faster. As an integer, because a pointer must not leave its array.
#define AHEAD 4 // blocks
#define PREFETCH(p)                                                                                            \
    if (prefetch) {                                                                                            \
        _mm_prefetch((const char *) ((uintptr_t) (p) + ahead), _MM_HINT_T0);                                   \
    }

// sums of four neighbours, unsigned x times w, in 32 bits
#if defined(SHERRY_ISA_AVX512VNNI)
#define DOT4(sum, x, w) _mm512_dpbusd_epi32(sum, x, w)
#else
#define DOT4(sum, x, w) \
    _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)))
#endif

// Lane of a row in the words of a tile: unpacking the words of a register then leaves its rows in order.
static inline int lane(int row) {
    return 8*(row%16/4) + row/16*4 + row%4;
}

// code: index | sign << 4
static inline void get_codes(const block_sherry * x, uint8_t codes[SHERRY_GROUPS]) {
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        codes[g] = (uint8_t) ((g < 16 ? x->qs[g] & 0xF : x->qs[g - 16] >> 4) | (x->signs[g/8] >> g%8 & 1) << 4);
    }
}

static inline void set_codes(block_sherry * x, const uint8_t codes[SHERRY_GROUPS]) {
    memset(x->signs, 0, sizeof(x->signs));
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        x->signs[g/8] |= (uint8_t) ((codes[g] >> 4) << g%8);
    }
    for (int j = 0; j < SHERRY_GROUPS/2; ++j) {
        x->qs[j] = (uint8_t) ((codes[j] & 0xF) | (codes[j + 16] & 0xF) << 4);
    }
}

// The sums of 4 activations with all 32 patterns, 16 bits each, in the order of the codes: of the group whose activations
// are the bytes of a dword.
typedef struct {
    __m512i weights[2]; // packing interleaves the 128-bit lanes: one has the codes 0..3, 8..11, .., the other those between
    __m512i start[2];   // activations are multiplied as x + 128, which is unsigned; sums begin with what that is too much
} pattern_sums;

INLINE pattern_sums sums_of_patterns(void) {
    const __m512i sign0 = _mm512_loadu_si512(ggml_sherry_patterns);
    const __m512i sign1 = _mm512_sub_epi8(_mm512_setzero_si512(), sign0);
    pattern_sums p = { { _mm512_shuffle_i32x4(sign0, sign1, 0x88), _mm512_shuffle_i32x4(sign0, sign1, 0xDD) }, { 0 } };
    for (int i = 0; i < 2; ++i) {
        const __m512i too_much = DOT4(_mm512_setzero_si512(), _mm512_set1_epi8((char) 0x80), p.weights[i]);
        p.start[i] = _mm512_sub_epi32(_mm512_setzero_si512(), too_much);
    }
    return p;
}

INLINE __m512i sums_of_group(const pattern_sums p, int32_t group) {
    const __m512i x = _mm512_xor_si512(_mm512_set1_epi32(group), _mm512_set1_epi8((char) 0x80));
    return _mm512_packs_epi32(DOT4(p.start[0], x, p.weights[0]), DOT4(p.start[1], x, p.weights[1]));
}

// The sums of 32 rows of one tile, with bias added, which makes them positive, to dst: a word of a sum below a word 0x4B00
// is the float 2^23 + sum.
INLINE void add_rows(__m512i sums, const int bias, __m512 d, const __m512 scales[2], float * dst, bool first) {
    const __m512i exponent = _mm512_set1_epi16(0x4B00);
    const __m512  zero     = _mm512_set1_ps(0x1p23f + (float) bias);
    const __m512i halves[2] = { _mm512_unpacklo_epi16(sums, exponent), _mm512_unpackhi_epi16(sums, exponent) };
    for (int i = 0; i < 2; ++i) {
        const __m512 sum   = _mm512_sub_ps(_mm512_castsi512_ps(halves[i]), zero);
        const __m512 scale = _mm512_mul_ps(scales[i], d);
        const __m512 old   = first ? _mm512_setzero_ps() : _mm512_loadu_ps(dst + 16*i);
        _mm512_storeu_ps(dst + 16*i, _mm512_fmadd_ps(sum, scale, old));
    }
}

// n_scales scales of rows of a tile begin here; those of row group k, to floats
INLINE void load_scales(const void * scales, int k, __m512 of_rows[2]) {
    const __m256i * of_k = (const __m256i *) scales + 2*k;
    of_rows[0] = _mm512_cvtph_ps(_mm256_loadu_si256(of_k));
    of_rows[1] = _mm512_cvtph_ps(_mm256_loadu_si256(of_k + 1));
}

#endif
