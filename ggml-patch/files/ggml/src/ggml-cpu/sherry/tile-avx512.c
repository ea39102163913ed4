#include "tile-x86.h"

#if defined(SHERRY_ISA_AVX512)

#include <string.h>

// Tiles of words with AVX-512: a register holds one word of 32 rows, vpermw looks up 32 sums of 16 bits. It reads the low
// five bits of each word of its index and ignores the others. So three codes go into a word, and the next one is a shift
// away; no mask, no sign to apply, nothing to widen before the block ends (32*381 = 12192).
//
//     word j, j < 10: bits 0..4 code of group 3*j, 5..9 of 3*j + 1, 10..14 of 3*j + 2, bit 15 one of the 10 bits
//                     of the codes of groups 30 and 31, lowest first
//     code: index | sign << 4
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 1 vpermw and 1 vpaddw; for all tokens at once 1.3 more, to
// shift and to collect the bits 15.

#define WORDS 10

// Lane of a row in the words of a tile: unpacking the words of a register then leaves its rows in order.
static inline int lane(int row) {
    return 8*(row%16/4) + row/16*4 + row%4;
}

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
            memcpy((uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), &word, 2);
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
            memcpy(&word, (const uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), 2);
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

// sums of four neighbours, unsigned x times w, in 32 bits
#if defined(SHERRY_ISA_AVX512VNNI)
#define DOT4(sum, x, w) _mm512_dpbusd_epi32(sum, x, w)
#else
#define DOT4(sum, x, w) \
    _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)))
#endif

// group g: its 32 sums in the order of the codes
static void tables_avx512(const block_q8_sherry * x, void * tables) {
    // packing interleaves the 128-bit lanes of two registers: one has the codes 0..3, 8..11, .., the other those between
    const __m512i sign0 = _mm512_loadu_si512(ggml_sherry_patterns);
    const __m512i sign1 = _mm512_sub_epi8(_mm512_setzero_si512(), sign0);
    const __m512i wa = _mm512_shuffle_i32x4(sign0, sign1, 0x88);
    const __m512i wb = _mm512_shuffle_i32x4(sign0, sign1, 0xDD);

    // activations are multiplied as x + 128, which is unsigned; sums begin with what that is too much
    const __m512i offset = _mm512_set1_epi8((char) 0x80);
    const __m512i too_much_a = DOT4(_mm512_setzero_si512(), offset, wa);
    const __m512i too_much_b = DOT4(_mm512_setzero_si512(), offset, wb);
    const __m512i sa = _mm512_sub_epi32(_mm512_setzero_si512(), too_much_a);
    const __m512i sb = _mm512_sub_epi32(_mm512_setzero_si512(), too_much_b);

    int32_t groups[SHERRY_GROUPS];
    groups_of_planes(x, groups);
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        const __m512i xg = _mm512_xor_si512(_mm512_set1_epi32(groups[g]), offset);
        _mm512_store_si512((__m512i *) tables + g, _mm512_packs_epi32(DOT4(sa, xg, wa), DOT4(sb, xg, wb)));
    }
}

// Sums are kept with 2^14 added, which makes them positive: a word of a sum below a word 0x4B00 is the float 2^23 + sum.
#define BIAS 0x4000

// the 32 rows of one tile to dst
static inline void add_rows(__m512i sums, __m512 d, const __m512 scales[2], float * dst, bool first) {
    const __m512i exponent = _mm512_set1_epi16(0x4B00);
    const __m512  zero     = _mm512_set1_ps(0x1p23f + BIAS);
    const __m512i halves[2] = { _mm512_unpacklo_epi16(sums, exponent), _mm512_unpackhi_epi16(sums, exponent) };
    for (int i = 0; i < 2; ++i) {
        const __m512 sum = _mm512_sub_ps(_mm512_castsi512_ps(halves[i]), zero);
        const __m512 scale = _mm512_mul_ps(scales[i], d);
        const __m512 old = first ? _mm512_setzero_ps() : _mm512_loadu_ps(dst + 16*i);
        _mm512_storeu_ps(dst + 16*i, _mm512_fmadd_ps(sum, scale, old));
    }
}

// a loop over tiles or tokens
#define EACH(i, n) UNROLL for (int i = 0; i < (n); ++i)

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

// Weights come from memory. The processor sees where they go on inside a row of blocks, but not from one row of tiles to
// the next, and four rows at once are more than it follows well: asking for the lines ahead makes it 1.5 to 2 times
// faster. As an integer, because a pointer must not leave its array.
#define AHEAD 4
#define PREFETCH(p)                                                                                            \
    if (prefetch) {                                                                                            \
        _mm_prefetch((const char *) ((uintptr_t) (p) + ahead), _MM_HINT_T0);                                   \
    }

// the sums so far, times the scales of weights of row group k, to dst; then they begin anew
#define FLUSH(k)                                                                                               \
    EACH(i, n_tiles) {                                                                                         \
        const __m256i * scales = (const __m256i *) (words[i] + WORDS) + 2*(k);                                 \
        const __m512 of_rows[2] = {                                                                            \
            _mm512_cvtph_ps(_mm256_loadu_si256(scales)), _mm512_cvtph_ps(_mm256_loadu_si256(scales + 1))       \
        };                                                                                                     \
        EACH(t, n_tokens) {                                                                                    \
            add_rows(sums[i][t], _mm512_set1_ps(d[t][n_scales*(b/n_planes) + (k)]), of_rows, dst[t] + SHERRY_TILE_ROWS*i, \
                     first && b == 0 && (k) == 0);                                                             \
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
        const int n_scales, const int n_tiles, size_t tile_stride, const uint8_t * tiles, int n_blocks, int n_planes, const int n_tokens,
        const void * const * tables, const float * const * d, float * const * dst, bool first, bool prefetch) {
    const __m512i top = _mm512_set1_epi16((short) 0x8000);
    const size_t  tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    const size_t  in_row     = AHEAD*tile_bytes;
    const size_t  next_row   = n_tiles*tile_stride + in_row - n_blocks*tile_bytes; // of the tiles after these

    for (int b = 0; b < n_blocks; ++b) {
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
            of_block[t] = (const __m512i *) tables[t] + b/n_planes*SHERRY_GROUPS;
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
