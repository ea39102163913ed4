#include "tile.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>
#include <string.h>

// Tiles of words with AVX-512: a register holds one word of 32 rows, vpermw looks up 32 sums of 16 bits. It reads the low
// five bits of each word of its index and ignores the others. So three codes go into a word, and the next one is a shift
// away; no mask, no sign to apply, nothing to widen before the block ends (32*381 = 12192).
//
//     word j, j < 10: bits 0..4 code of group 3*j, 5..9 of 3*j + 1, 10..14 of 3*j + 2, bit 15 one of the 10 bits
//                     of the codes of groups 30 and 31, lowest first
//     code: index | sign << 4
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 1 vpermw and 1 vpaddw; for all tokens at once 1 more, to shift.

#define WORDS 10

static void pack_words(const block_sherry * rows, size_t row_blocks, void * tile) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        const block_sherry * x = rows + (size_t) r*row_blocks;
        int codes[SHERRY_GROUPS];
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            codes[g] = (g < 16 ? x->qs[g] & 0xF : x->qs[g - 16] >> 4) | (x->signs[g/8] >> g%8 & 1) << 4;
        }
        const int last = codes[30] | codes[31] << 5;
        for (int j = 0; j < WORDS; ++j) {
            const uint16_t word = (uint16_t) (codes[3*j] | codes[3*j + 1] << 5 | codes[3*j + 2] << 10 | (last >> j & 1) << 15);
            memcpy((uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + r), &word, 2);
        }
        memcpy((uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, x->d, 2);
    }
}

static void unpack_words(const void * tile, block_sherry * rows, size_t row_blocks) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        int codes[SHERRY_GROUPS];
        int last = 0;
        for (int j = 0; j < WORDS; ++j) {
            uint16_t word;
            memcpy(&word, (const uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + r), 2);
            codes[3*j    ] = word       & 0x1F;
            codes[3*j + 1] = word >>  5 & 0x1F;
            codes[3*j + 2] = word >> 10 & 0x1F;
            last |= (word >> 15) << j;
        }
        codes[30] = last & 0x1F;
        codes[31] = last >> 5;

        block_sherry * x = rows + (size_t) r*row_blocks;
        memset(x->signs, 0, sizeof(x->signs));
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            x->signs[g/8] |= (uint8_t) ((codes[g] >> 4) << g%8);
        }
        for (int j = 0; j < SHERRY_GROUPS/2; ++j) {
            x->qs[j] = (uint8_t) ((codes[j] & 0xF) | (codes[j + 16] & 0xF) << 4);
        }
        memcpy(x->d, (const uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, 2);
    }
}

// group g: 32 sums, those with sign 1 after those with sign 0
static void tables_avx512(const block_q8_sherry * x, void * tables) {
    // the second and third halves of the patterns of sign 0, weights as words: w0 of all 16, then w1, ..
    const __m256i w0 = _mm256_setr_epi16(0, 0, 0, 0,  1, 1,  1,  1,  1,  1,  1,  1,  1,  1,  1,  1);
    const __m256i w1 = _mm256_setr_epi16(1, 1, 1, 1,  0, 0,  0,  0,  1, -1,  1, -1,  1, -1,  1, -1);
    const __m256i w2 = _mm256_setr_epi16(1, -1, 1, -1,  1, -1,  1, -1,  0, 0,  0,  0,  1,  1, -1, -1);
    const __m256i w3 = _mm256_setr_epi16(1, 1, -1, -1,  1, 1, -1, -1,  1, 1, -1, -1,  0,  0,  0,  0);

    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        const __m256i t01 = _mm256_add_epi16(_mm256_sign_epi16(_mm256_set1_epi16(x->qs[g]), w0),
                                             _mm256_sign_epi16(_mm256_set1_epi16(x->qs[g + SHERRY_GROUPS]), w1));
        const __m256i t23 = _mm256_add_epi16(_mm256_sign_epi16(_mm256_set1_epi16(x->qs[g + 2*SHERRY_GROUPS]), w2),
                                             _mm256_sign_epi16(_mm256_set1_epi16(x->qs[g + 3*SHERRY_GROUPS]), w3));
        const __m256i t = _mm256_add_epi16(t01, t23);
        _mm256_store_si256((__m256i *) tables + 2*g, t);
        _mm256_store_si256((__m256i *) tables + 2*g + 1, _mm256_sub_epi16(_mm256_setzero_si256(), t));
    }
}

// the 32 rows of one tile to dst
static inline void add_rows(const float d, const uint8_t * scales, __m512i sums, float * dst, bool first) {
    const __m512i halves[2] = {
        _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums)),
        _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums, 1)),
    };
    for (int i = 0; i < 2; ++i) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) scales + i));
        const __m512 sum   = _mm512_mul_ps(_mm512_cvtepi32_ps(halves[i]), _mm512_set1_ps(d));
        const __m512 old   = first ? _mm512_setzero_ps() : _mm512_loadu_ps(dst + 16*i);
        _mm512_storeu_ps(dst + 16*i, _mm512_fmadd_ps(sum, scale, old));
    }
}

// one group: its codes lie lowest in the words of index
#define LOOK_UP(group)                                                                                         \
    for (int t = 0; t < n_tokens; ++t) {                                                                       \
        const __m512i table = _mm512_load_si512((const __m512i *) tables[t] + (group));                        \
        for (int i = 0; i < n_tiles; ++i) {                                                                    \
            sums[i][t] = _mm512_add_epi16(sums[i][t], _mm512_permutexvar_epi16(index[i], table));              \
        }                                                                                                      \
    }

#define SHIFT(bits)                                                                                            \
    for (int i = 0; i < n_tiles; ++i) {                                                                        \
        index[i] = _mm512_srli_epi16(index[i], bits);                                                          \
    }

// n_tiles and n_tokens are constants where this is inlined: up to 4*4 registers of sums, 4 of indices, 4 of last codes
static inline __attribute__((always_inline)) void mul_tiles(
        const int n_tiles, size_t tile_stride, const uint8_t * tiles, const int n_tokens, const void * const * tables,
        const float * d, float * const * dst, bool first) {
    const __m512i top = _mm512_set1_epi16((short) 0x8000);

    __m512i sums[4][SHERRY_MAX_TOKENS], last[4], index[4];
    for (int i = 0; i < n_tiles; ++i) {
        last[i] = _mm512_setzero_si512();
        for (int t = 0; t < n_tokens; ++t) {
            sums[i][t] = _mm512_setzero_si512();
        }
    }
    for (int j = 0; j < WORDS; ++j) {
        for (int i = 0; i < n_tiles; ++i) {
            index[i] = _mm512_loadu_si512((const __m512i *) (tiles + (size_t) i*tile_stride) + j);
            // last = last >> 1 | (index & top): a bit enters on top, the first ends up lowest
            last[i] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(last[i], 1), index[i], top, 0xF8);
        }
        LOOK_UP(3*j)
        SHIFT(5)
        LOOK_UP(3*j + 1)
        SHIFT(5)
        LOOK_UP(3*j + 2)
    }
    for (int i = 0; i < n_tiles; ++i) {
        index[i] = _mm512_srli_epi16(last[i], 16 - WORDS);
    }
    LOOK_UP(30)
    SHIFT(5)
    LOOK_UP(31)

    for (int i = 0; i < n_tiles; ++i) {
        for (int t = 0; t < n_tokens; ++t) {
            const uint8_t * scales = tiles + (size_t) i*tile_stride + SHERRY_TILE_SCALES;
            add_rows(d[t], scales, sums[i][t], dst[t] + SHERRY_TILE_ROWS*i, first);
        }
    }
}

#define MUL(n_tiles, n_tokens) \
    case 8*(n_tiles) + (n_tokens): mul_tiles(n_tiles, tile_stride, tiles, n_tokens, tables, d, dst, first); break;
#define MUL_TILES(n_tiles) MUL(n_tiles, 1) MUL(n_tiles, 2) MUL(n_tiles, 3) MUL(n_tiles, 4)

static void mul_avx512(int n_tiles, size_t tile_stride, const void * tiles, int n_tokens, const void * const * tables,
                       const float * d, float * const * dst, bool first) {
    switch (8*n_tiles + n_tokens) {
        MUL_TILES(1)
        MUL_TILES(2)
        MUL_TILES(3)
        MUL_TILES(4)
    }
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx512 = {
    .name        = "avx512",
    .table_bytes = SHERRY_GROUPS*64,
    .max_tiles   = 4,
    .pack        = pack_words,
    .unpack      = unpack_words,
    .tables      = tables_avx512,
    .mul         = mul_avx512,
};

#endif
