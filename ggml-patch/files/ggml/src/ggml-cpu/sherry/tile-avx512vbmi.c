#include "tile-avx512.h"

#if defined(SHERRY_ISA_AVX512VBMI)

// Tiles of pairs with AVX-512 VBMI: a register holds one code of two groups of 32 rows, vpermb looks up both. It reads
// the low six bits of each byte of its index: five of a code, and one that says which group's half of the table it is.
// Sums are looked up in two parts, t = 31*h + l, as tile-avx2.c does, but all 32 of them: no sign to apply. The parts of
// 8 pairs add up in bytes (|l| <= 120, |h| <= 96); maddubs puts the two groups of a row together, and widens.
//
// Half a block of a row, 16 groups, is five words x0..x4. An index is a word, too: the code of the pair's first group is
// in its high byte, that of the second in the low byte. The eight of them are
//
//     x0    x0 >> 5 ^ x1 >> 3    x1    x1 >> 2 ^ x2    x2 >> 3 ^ x3 >> 6    x3    x3 >> 5 ^ x4 >> 3    x4
//
// in the low five bits of both bytes; bit 5 is set in the low byte, cleared in the high one. To pack is to solve that for
// the words. What a shift brings along besides is known by then, so that nothing need be masked. Seven shifts are the
// least: three bits of each byte have to move, in any shift of them one comes to lie at bit 2, and only eight of the ten
// bits there are read.
//
// Operations for 32 rows x 2 groups x 1 token, 256 weights: 2 vpermb, 1.75 vpaddb and 7/16 of putting together; for all
// tokens at once 2 more.

#define BASE  31
#define WORDS 5 // of half a block
#define PAIRS 8

// One byte of the words, such that the indices have these codes. Shifts bring zeros in.
static void solve(const uint8_t c[PAIRS], uint8_t x[WORDS]) {
    enum { BITS01 = 0x60, BIT2 = 0x80 }; // of a code that is five places higher
    x[1] = (uint8_t) (c[2] | c[1] >> 3 << 6);
    x[4] = (uint8_t) (c[7] | c[6] >> 3 << 6);
    x[0] = (uint8_t) (c[0] | ((c[1] ^ x[1] >> 3) << 5 & BITS01));
    x[3] = (uint8_t) (c[5] | ((c[6] ^ x[4] >> 3) << 5 & BITS01));
    x[2] = (uint8_t) (((c[3] ^ x[1] >> 2) & 0x17) | ((c[4] ^ x[3] >> 6) & 1) << 3 | c[4] >> 2 << 5);
    // bits that depend on bits of two words
    x[1] |= (uint8_t) (((c[3] ^ x[2]) >> 3 & 1) << 5);
    x[0] |= (uint8_t) ((c[1] ^ x[1] >> 3) << 5 & BIT2);
    x[3] |= (uint8_t) (((c[4] ^ x[2] >> 3) >> 1 & 1) << 7);
    x[4] |= (uint8_t) (((c[6] ^ x[3] >> 5) >> 2 & 1) << 5);
}

static void pack_half(const uint8_t codes[2*PAIRS], uint16_t words[WORDS]) {
    uint8_t high[WORDS], low[WORDS], c[PAIRS];
    for (int i = 0; i < PAIRS; ++i) {
        c[i] = codes[2*i];
    }
    solve(c, high);
    for (int i = 0; i < PAIRS; ++i) {
        c[i] = codes[2*i + 1];
    }
    // what shifts bring in from the high byte
    c[1] ^= (high[0] << 8 >> 5 ^ high[1] << 8 >> 3) & 0x1F;
    c[3] ^= (high[1] << 8 >> 2) & 0x1F;
    c[4] ^= (high[2] << 8 >> 3 ^ high[3] << 8 >> 6) & 0x1F;
    c[6] ^= (high[3] << 8 >> 5 ^ high[4] << 8 >> 3) & 0x1F;
    solve(c, low);
    for (int j = 0; j < WORDS; ++j) {
        words[j] = (uint16_t) (low[j] | high[j] << 8);
    }
}

static void unpack_half(const uint16_t x[WORDS], uint8_t codes[2*PAIRS]) {
    const int index[PAIRS] = {
        x[0], x[0] >> 5 ^ x[1] >> 3, x[1], x[1] >> 2 ^ x[2], x[2] >> 3 ^ x[3] >> 6, x[3], x[3] >> 5 ^ x[4] >> 3, x[4],
    };
    for (int i = 0; i < PAIRS; ++i) {
        codes[2*i]     = index[i] >> 8 & 0x1F;
        codes[2*i + 1] = index[i]      & 0x1F;
    }
}

static void pack_pairs(const block_sherry * rows, size_t row_blocks, void * tile) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        const block_sherry * x = rows + (size_t) r*row_blocks;
        uint8_t codes[SHERRY_GROUPS];
        get_codes(x, codes);
        uint16_t words[2*WORDS];
        pack_half(codes, words);
        pack_half(codes + 2*PAIRS, words + WORDS);
        for (int j = 0; j < 2*WORDS; ++j) {
            memcpy((uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), words + j, 2);
        }
        memcpy((uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, x->d, 2);
    }
}

static void unpack_pairs(const void * tile, block_sherry * rows, size_t row_blocks) {
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        uint16_t words[2*WORDS];
        for (int j = 0; j < 2*WORDS; ++j) {
            memcpy(words + j, (const uint8_t *) tile + 2*(SHERRY_TILE_ROWS*j + lane(r)), 2);
        }
        uint8_t codes[SHERRY_GROUPS];
        unpack_half(words, codes);
        unpack_half(words + WORDS, codes + 2*PAIRS);

        block_sherry * x = rows + (size_t) r*row_blocks;
        set_codes(x, codes);
        memcpy(x->d, (const uint8_t *) tile + SHERRY_TILE_SCALES + 2*r, 2);
    }
}

// Sums of parts begin with the first pair's: h, 128 more, is then unsigned, and the sum of a block positive. Of SHERRY_G32
// parts of four pairs are put together, one scale's, of SHERRY those of eight, twice.
#define H_BIAS 0x80
#define BIAS(n_scales) (2*((n_scales) == 1 ? 2 : 1)*BASE*H_BIAS) // of two groups, put together once or twice

// pair p: 64 bytes l, of the one group and of the other in the order of the codes, 64 bytes h; n_pairs are put together
INLINE void make_tables(const block_q8_sherry * x, const int n_pairs, void * tables) {
    const __m512i groups_apart = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0); // the same once more, of 64-bit lanes

    const pattern_sums sums = sums_of_patterns();
    int32_t groups[SHERRY_GROUPS];
    groups_of_planes(x, groups);
    for (int p = 0; p < 2*PAIRS; ++p) {
        __m512i l[2], h[2];
        for (int i = 0; i < 2; ++i) {
            const __m512i t = sums_of_group(sums, groups[2*p + i]);
            // round(t*1057/2^15), 1057/2^15 being a little more than 1/31: |t - 31*h| <= 15 for all |t| <= 381
            h[i] = _mm512_mulhrs_epi16(t, _mm512_set1_epi16(1057));
            l[i] = _mm512_sub_epi16(t, _mm512_mullo_epi16(h[i], _mm512_set1_epi16(BASE)));
        }
        const __m512i bias = _mm512_set1_epi8(p%n_pairs == 0 ? (char) H_BIAS : 0);
        const __m512i lows  = _mm512_permutexvar_epi64(groups_apart, _mm512_packs_epi16(l[0], l[1]));
        const __m512i highs = _mm512_permutexvar_epi64(groups_apart, _mm512_packs_epi16(h[0], h[1]));
        _mm512_store_si512((__m512i *) tables + 2*p, lows);
        _mm512_store_si512((__m512i *) tables + 2*p + 1, _mm512_add_epi8(highs, bias));
    }
}

static void tables_avx512vbmi(const block_q8_sherry * x, void * tables) {
    make_tables(x, PAIRS, tables);
}

static void tables_g32_avx512vbmi(const block_q8_sherry * x, void * tables) {
    make_tables(x, PAIRS/2, tables);
}

// pair i of half k; of n_pairs the first is what the sums begin with
#define LOOK_UP(i)                                                                                             \
    EACH(t, n_tokens) {                                                                                        \
        __m512i table_l = _mm512_load_si512(tables[t] + 2*(PAIRS*k + (i)));                                    \
        __m512i table_h = _mm512_load_si512(tables[t] + 2*(PAIRS*k + (i)) + 1);                                \
        KEEP(table_l);                                                                                         \
        KEEP(table_h);                                                                                         \
        EACH(n, n_tiles) {                                                                                     \
            const __m512i l_n = _mm512_permutexvar_epi8(index[n], table_l);                                    \
            const __m512i h_n = _mm512_permutexvar_epi8(index[n], table_h);                                    \
            l[n][t] = (i)%n_pairs == 0 ? l_n : _mm512_add_epi8(l[n][t], l_n);                                  \
            h[n][t] = (i)%n_pairs == 0 ? h_n : _mm512_add_epi8(h[n][t], h_n);                                  \
            KEEP(l[n][t]);                                                                                     \
            KEEP(h[n][t]);                                                                                     \
        }                                                                                                      \
    }

// Indices of each tile: of a word, and of the exclusive or of two. The latter are shifted by three or more, which leaves
// bit 5 of the high byte cleared.
#define INDEX(i, word)                                                                                         \
    EACH(n, n_tiles) {                                                                                         \
        index[n] = _mm512_ternarylogic_epi32(word, bits5, low_bit5, 0xB8); /* bits5 ? low_bit5 : word */       \
    }                                                                                                          \
    LOOK_UP(i)
#define INDEX_XOR(i, a, b)                                                                                     \
    EACH(n, n_tiles) {                                                                                         \
        index[n] = _mm512_ternarylogic_epi32(a, b, low_bit5, 0xBE); /* a ^ b | low_bit5 */                     \
    }                                                                                                          \
    LOOK_UP(i)

#define WORD(j)     x[n][j]
#define SHIFT(j, b) _mm512_srli_epi16(x[n][j], b)

#define LOAD(j)                                                                                                \
    EACH(n, n_tiles) {                                                                                         \
        x[n][j] = _mm512_loadu_si512(words[n] + WORDS*k + (j));                                                \
        PREFETCH(words[n] + WORDS*k + (j))                                                                     \
    }

// parts of the pairs so far, put together: the first of a scale, or another
#define JOIN(is_first)                                                                                         \
    EACH(n, n_tiles) {                                                                                         \
        EACH(t, n_tokens) {                                                                                    \
            const __m512i of_l = _mm512_maddubs_epi16(_mm512_set1_epi8(1), l[n][t]);                           \
            const __m512i of_h = _mm512_maddubs_epi16(h[n][t], _mm512_set1_epi8(BASE));                        \
            const __m512i both = _mm512_add_epi16(of_l, of_h);                                                 \
            sums[n][t] = (is_first) ? both : _mm512_add_epi16(sums[n][t], both);                               \
        }                                                                                                      \
    }

// the sums, times the scales of row group s, to dst
#define FLUSH(s)                                                                                               \
    EACH(n, n_tiles) {                                                                                         \
        const __m256i * scales = (const __m256i *) (words[n] + 2*WORDS);                                       \
        PREFETCH(scales + 2*(s))                                                                               \
        __m512 of_rows[2];                                                                                     \
        load_scales(scales, s, of_rows);                                                                       \
        EACH(t, n_tokens) {                                                                                    \
            add_rows(sums[n][t], BIAS(n_scales), _mm512_set1_ps(d[t][s]), of_rows,                             \
                     dst[t] + row + SHERRY_TILE_ROWS*n, first && (s) == 0);                                    \
        }                                                                                                      \
    }

// half k of a block of each tile with each token; k, n_scales, n_tiles and n_tokens are constants
INLINE void add_half(
        const int k, const int n_scales, const int n_tiles, const int n_tokens, const __m512i * const * words,
        const __m512i * const * tables, const float * const * d, float * const * dst, size_t row, bool first,
        __m512i sums[2][SHERRY_MAX_TOKENS], bool prefetch, size_t ahead) {
    const __m512i bits5    = _mm512_set1_epi16(0x2020);
    const __m512i low_bit5 = _mm512_set1_epi16(0x0020);
    const int     n_pairs  = n_scales == 1 ? PAIRS : PAIRS/2; // that are put together

    __m512i x[2][WORDS], index[2], l[2][SHERRY_MAX_TOKENS], h[2][SHERRY_MAX_TOKENS];
    LOAD(0)
    INDEX(0, WORD(0))
    LOAD(1)
    INDEX_XOR(1, SHIFT(0, 5), SHIFT(1, 3))
    INDEX(2, WORD(1))
    LOAD(2)
    INDEX(3, _mm512_xor_si512(SHIFT(1, 2), WORD(2)))
    if (n_scales == SHERRY_G32_SCALES) {
        JOIN(true)
        FLUSH(2*k)
    }
    LOAD(3)
    INDEX_XOR(4, SHIFT(2, 3), SHIFT(3, 6))
    INDEX(5, WORD(3))
    LOAD(4)
    INDEX_XOR(6, SHIFT(3, 5), SHIFT(4, 3))
    INDEX(7, WORD(4))
    if (n_scales == SHERRY_G32_SCALES) {
        JOIN(true)
        FLUSH(2*k + 1)
    } else {
        JOIN(k == 0)
    }
}

// one block of n_tiles tiles, 1 or 2; n_scales, n_tiles and n_tokens are constants: 16 registers of sums at most
INLINE void mul_block(
        const int n_scales, const int n_tiles, size_t tile_stride, const uint8_t * tiles, const int n_tokens,
        const __m512i * const * tables, const float * const * d, float * const * dst, size_t row, bool first,
        bool prefetch, size_t ahead) {
    const __m512i * words[2];
    __m512i sums[2][SHERRY_MAX_TOKENS];
    EACH(n, n_tiles) {
        words[n] = (const __m512i *) (tiles + (size_t) n*tile_stride);
    }
    add_half(0, n_scales, n_tiles, n_tokens, words, tables, d, dst, row, first, sums, prefetch, ahead);
    add_half(1, n_scales, n_tiles, n_tokens, words, tables, d, dst, row, first, sums, prefetch, ahead);
    if (n_scales == 1) {
        FLUSH(0)
    }
}

// n_scales and n_tokens are constants where this is inlined
INLINE void mul_tiles(
        const int n_scales, int n_tiles, size_t tile_stride, const uint8_t * tiles, int n_blocks, int n_planes, const int n_tokens,
        const void * const * tables, const float * const * d, float * const * dst, bool first, bool prefetch) {
    const size_t tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    const size_t in_row     = AHEAD*tile_bytes;
    const size_t next_row   = n_tiles*tile_stride + in_row - n_blocks*tile_bytes; // of the tiles after these

    for (int b = 0; b < n_blocks; ++b) {
        const int met = ggml_sherry_met_block(b, n_planes);
        const __m512i * of_block[SHERRY_MAX_TOKENS];
        const float   * d_b[SHERRY_MAX_TOKENS];
        EACH(t, n_tokens) {
            of_block[t] = (const __m512i *) tables[t] + 4*PAIRS*met;
            d_b[t]      = d[t] + n_scales*met;
        }
        const size_t ahead = b + AHEAD < n_blocks ? in_row : next_row;
        const uint8_t * of_tiles = tiles + b*tile_bytes;
        // two tiles at a time, for each two tables that are loaded; those of the block stay in the first-level cache
        int i = 0;
        for (; i + 2 <= n_tiles; i += 2) {
            mul_block(n_scales, 2, tile_stride, of_tiles + (size_t) i*tile_stride, n_tokens, of_block, d_b, dst,
                      SHERRY_TILE_ROWS*i, first && b == 0, prefetch, ahead);
        }
        if (i < n_tiles) {
            mul_block(n_scales, 1, tile_stride, of_tiles + (size_t) i*tile_stride, n_tokens, of_block, d_b, dst,
                      SHERRY_TILE_ROWS*i, first && b == 0, prefetch, ahead);
        }
    }
}

#define MUL(n_scales, n_tokens) \
    case n_tokens: \
        mul_tiles(n_scales, n_tiles, tile_stride, tiles, n_blocks, n_planes, n_tokens, tables, d, dst, first, prefetch); \
        break;

static void mul_avx512vbmi(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                           const void * const * tables, const float * const * d, float * const * dst, bool first,
                           bool prefetch) {
    switch (n_tokens) {
        MUL(1, 1) MUL(1, 2) MUL(1, 3) MUL(1, 4)
    }
}

static void mul_g32_avx512vbmi(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                               const void * const * tables, const float * const * d, float * const * dst, bool first,
                               bool prefetch) {
    switch (n_tokens) {
        MUL(SHERRY_G32_SCALES, 1) MUL(SHERRY_G32_SCALES, 2) MUL(SHERRY_G32_SCALES, 3) MUL(SHERRY_G32_SCALES, 4)
    }
}

#define KERNEL(of_name, of_many)              \
    {                                         \
        .name        = of_name,               \
        .table_bytes = SHERRY_GROUPS*64,      \
        .max_tiles   = 4,                     \
        .pack        = pack_pairs,            \
        .unpack      = unpack_pairs,          \
        .tables      = tables_avx512vbmi,     \
        .tables_g32  = tables_g32_avx512vbmi, \
        .mul         = mul_avx512vbmi,        \
        .mul_g32     = mul_g32_avx512vbmi,    \
        .many        = of_many,               \
    }

const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx512vbmi = KERNEL("avx512vbmi", NULL);

#if defined(SHERRY_ISA_AMX)
const struct ggml_sherry_tile_kernel ggml_sherry_tile_amx = KERNEL("amx", &ggml_sherry_many_amx);
#endif

#endif
