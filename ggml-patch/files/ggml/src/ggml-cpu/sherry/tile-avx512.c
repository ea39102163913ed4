#include "tile-avx512.h"

#if defined(SHERRY_ISA_AVX512)

// Tiles of words with AVX-512: a register holds one word of 32 rows, vpermw looks up 32 sums of 16 bits. It reads the low
// five bits of each word of its index and ignores the others. So three codes go into a word, and the next one is a shift
// away; no mask, no sign to apply, nothing to widen before the block ends (32*381 = 12192).
//
//     word j, j < 10: bits 0..4 code of group 3*j, 5..9 of 3*j + 1, 10..14 of 3*j + 2, bit 15 one of the 10 bits
//                     of the codes of groups 30 and 31, lowest first
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 1 vpermw and 1 vpaddw; for all tokens at once 1.3 more, to
// shift and to collect the bits 15.

#define WORDS 10

static void pack_words(const block_sherry * rows, size_t row_blocks, void * tile) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        const block_sherry * x = rows + (size_t) r*row_blocks;
        uint8_t codes[SHERRY_GROUPS];
        get_codes(x, codes);
        const int last = codes[30] | codes[31] << 5;
        for (int j = 0; j < WORDS; ++j) {
            const uint16_t word = (uint16_t) (codes[3*j] | codes[3*j + 1] << 5 | codes[3*j + 2] << 10 | (last >> j & 1) << 15);
            memcpy((uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), &word, 2);
        }
        memcpy((uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, x->d, 2);
    }
}

static void unpack_words(const void * tile, block_sherry * rows, size_t row_blocks) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        uint8_t codes[SHERRY_GROUPS];
        int last = 0;
        for (int j = 0; j < WORDS; ++j) {
            uint16_t word;
            memcpy(&word, (const uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), 2);
            codes[3*j    ] = word       & 0x1F;
            codes[3*j + 1] = word >>  5 & 0x1F;
            codes[3*j + 2] = word >> 10 & 0x1F;
            last |= (word >> 15) << j;
        }
        codes[30] = (uint8_t) (last & 0x1F);
        codes[31] = (uint8_t) (last >> 5);

        block_sherry * x = rows + (size_t) r*row_blocks;
        set_codes(x, codes);
        memcpy(x->d, (const uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, 2);
    }
}

// group g: its 32 sums in the order of the codes
static void tables_avx512(const block_q8_sherry * x, void * tables) {
    const pattern_sums p = sums_of_patterns();
    int32_t groups[SHERRY_GROUPS];
    groups_of_planes(x, groups);
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        _mm512_store_si512((__m512i *) tables + g, sums_of_group(p, groups[g]));
    }
}

#define BIAS 0x4000 // of sums, |sum| <= 12192

// one group: its codes lie lowest in the words of index
#define LOOK_UP(group)                                                                                         \
    EACH(t, n_tokens) {                                                                                        \
        __m512i table = _mm512_load_si512(of_block[t] + (group));                                              \
        KEEP(table);                                                                                           \
        EACH(i, n_tiles) {                                                                                     \
            sums[i][t] = _mm512_add_epi16(sums[i][t], _mm512_permutexvar_epi16(index[i], table));              \
            KEEP(sums[i][t]);                                                                                  \
        }                                                                                                      \
    }

#define SHIFT(bits)                                                                                            \
    EACH(i, n_tiles) {                                                                                         \
        index[i] = _mm512_srli_epi16(index[i], bits);                                                          \
    }

// the sums so far, times the scales of weights of row group k, to dst; then they begin anew
#define FLUSH(k)                                                                                               \
    EACH(i, n_tiles) {                                                                                         \
        __m512 of_rows[2];                                                                                     \
        load_scales(words[i] + WORDS, k, of_rows);                                                             \
        EACH(t, n_tokens) {                                                                                    \
            add_rows(sums[i][t], BIAS, _mm512_set1_ps(d[t][n_scales*met + (k)]), of_rows,                     \
                     dst[t] + SHERRY_TILE_ROWS*i, first && b == 0 && (k) == 0);                                \
            sums[i][t] = _mm512_set1_epi16(BIAS);                                                              \
        }                                                                                                      \
    }

// group 3*j + c, for the words j of index; with four scales a block ends after the groups 7, 15, 23 and 31
#define LOOK_UP_C(c)                                                                                           \
    LOOK_UP(3*j + (c))                                                                                         \
    if (n_scales == SHERRY_G32_SCALES && (3*j + (c))%8 == 7) {                                                 \
        FLUSH((3*j + (c))/8)                                                                                   \
    }

// n_scales, n_tiles and n_tokens are constants where this is inlined: 16 registers of sums at most, and one of codes for
// each tile
INLINE void mul_tiles(
        const int n_scales, const int n_tiles, size_t tile_stride, const uint8_t * tiles, int n_blocks, int n_planes,
        const int n_tokens, const void * const * tables, const float * const * d, float * const * dst, bool first,
        bool prefetch) {
    const __m512i top = _mm512_set1_epi16((short) 0x8000);
    const size_t  tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    const size_t  in_row     = AHEAD*tile_bytes;
    const size_t  next_row   = n_tiles*tile_stride + in_row - n_blocks*tile_bytes; // of the tiles after these

    for (int b = 0; b < n_blocks; ++b) {
        const int met = ggml_sherry_met_block(b, n_planes);
        const __m512i * words[4];
        const __m512i * of_block[SHERRY_MAX_TOKENS];
        __m512i sums[4][SHERRY_MAX_TOKENS], index[4];
        EACH(i, n_tiles) {
            words[i] = (const __m512i *) (tiles + (size_t) i*tile_stride + b*tile_bytes);
            EACH(t, n_tokens) {
                sums[i][t] = _mm512_set1_epi16(BIAS);
            }
        }
        EACH(t, n_tokens) {
            of_block[t] = (const __m512i *) tables[t] + met*SHERRY_GROUPS;
        }
        const size_t ahead = b + AHEAD < n_blocks ? in_row : next_row;
        for (int j = 0; j < WORDS; ++j) {
            EACH(i, n_tiles) {
                index[i] = _mm512_loadu_si512(words[i] + j);
                PREFETCH(words[i] + j)
            }
            LOOK_UP_C(0)
            SHIFT(5)
            LOOK_UP_C(1)
            SHIFT(5)
            LOOK_UP_C(2)
        }
        EACH(i, n_tiles) {
            __m512i last = _mm512_setzero_si512();
            for (int j = 0; j < WORDS; ++j) {
                // last >> 1 | (word & top): a bit enters on top, the first ends up lowest
                last = _mm512_ternarylogic_epi32(_mm512_srli_epi16(last, 1), _mm512_loadu_si512(words[i] + j), top, 0xF8);
            }
            index[i] = _mm512_srli_epi16(last, 16 - WORDS);
            EACH(k, n_scales) {
                PREFETCH(words[i] + WORDS + k)
            }
        }
        LOOK_UP(30)
        SHIFT(5)
        LOOK_UP(31)
        FLUSH(n_scales - 1)
    }
}

#define MUL(n_scales, n_tiles, n_tokens) \
    case 8*(n_tiles) + (n_tokens): \
        mul_tiles(n_scales, n_tiles, tile_stride, tiles, n_blocks, n_planes, n_tokens, tables, d, dst, first, prefetch); \
        break;
#define MUL_TILES(n_scales, n_tiles) \
    MUL(n_scales, n_tiles, 1) MUL(n_scales, n_tiles, 2) MUL(n_scales, n_tiles, 3) MUL(n_scales, n_tiles, 4)

static void mul_avx512(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                       const void * const * tables, const float * const * d, float * const * dst, bool first,
                       bool prefetch) {
    switch (8*n_tiles + n_tokens) {
        MUL_TILES(1, 1)
        MUL_TILES(1, 2)
        MUL_TILES(1, 3)
        MUL_TILES(1, 4)
    }
}

static void mul_g32_avx512(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                           const void * const * tables, const float * const * d, float * const * dst, bool first,
                           bool prefetch) {
    switch (8*n_tiles + n_tokens) {
        MUL_TILES(SHERRY_G32_SCALES, 1)
        MUL_TILES(SHERRY_G32_SCALES, 2)
        MUL_TILES(SHERRY_G32_SCALES, 3)
        MUL_TILES(SHERRY_G32_SCALES, 4)
    }
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx512 = {
    .name        = "avx512",
    .table_bytes = SHERRY_GROUPS*64,
    .max_tiles   = 4,
    .pack        = pack_words,
    .unpack      = unpack_words,
    .tables      = tables_avx512,
    .tables_g32  = tables_avx512,
    .mul         = mul_avx512,
    .mul_g32     = mul_g32_avx512,
};

#endif
