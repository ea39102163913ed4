#include "tile.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>
#include <string.h>

// Tiles of bytes with AVX2: a register holds one byte of 32 rows, pshufb looks up 16 sums.
//
// A sum t = w0*x0 + .. + w3*x3 reaches 3*127 = 381, more than a byte: it is looked up in two parts, t = 31*h + l with
// |l| <= 15 and |h| <= 12. The parts of 8 groups add up in bytes (120 and 96 at most), psignb having negated them where
// the row's sign says so; maddubs with (1, 31) puts the two together again. 32 groups are 32*381 = 12192 at most: the
// rest of the block adds up in 16 bits.
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 2 pshufb, 2 psignb, 2 paddb and 6/8 of putting together;
// for all tokens at once 3.5 more to take index and sign from the bytes.

#define BASE 31

// the patterns of sign 0, weights of a group in order; see ggml-sherry.h
#define P00  0,  1,  1,  1
#define P01  0,  1, -1,  1
#define P02  0,  1,  1, -1
#define P03  0,  1, -1, -1
#define P04  1,  0,  1,  1
#define P05  1,  0, -1,  1
#define P06  1,  0,  1, -1
#define P07  1,  0, -1, -1
#define P08  1,  1,  0,  1
#define P09  1, -1,  0,  1
#define P10  1,  1,  0, -1
#define P11  1, -1,  0, -1
#define P12  1,  1,  1,  0
#define P13  1, -1,  1,  0
#define P14  1,  1, -1,  0
#define P15  1, -1, -1,  0

// group g: 16 bytes l, 16 bytes h
static void tables_avx2(const block_q8_sherry * x, void * tables) {
    // in the order that hadd, which works within 128 bits, makes 0..15 of
    const __m256i lo = _mm256_setr_epi8(P00, P01, P02, P03, P08, P09, P10, P11);
    const __m256i hi = _mm256_setr_epi8(P04, P05, P06, P07, P12, P13, P14, P15);
    const __m256i ones = _mm256_set1_epi8(1);

    // planes to groups: 4 activations of a group in a dword
    int8_t xs[QK_SHERRY];
    const __m256i p0 = _mm256_loadu_si256((const __m256i *) x->qs + 0);
    const __m256i p1 = _mm256_loadu_si256((const __m256i *) x->qs + 1);
    const __m256i p2 = _mm256_loadu_si256((const __m256i *) x->qs + 2);
    const __m256i p3 = _mm256_loadu_si256((const __m256i *) x->qs + 3);
    const __m256i a = _mm256_unpacklo_epi8(p0, p1); // groups 0..7, 16..23
    const __m256i b = _mm256_unpackhi_epi8(p0, p1); // groups 8..15, 24..31
    const __m256i c = _mm256_unpacklo_epi8(p2, p3);
    const __m256i e = _mm256_unpackhi_epi8(p2, p3);
    const __m256i g0 = _mm256_unpacklo_epi16(a, c); // groups 0..3, 16..19
    const __m256i g1 = _mm256_unpackhi_epi16(a, c); // groups 4..7, 20..23
    const __m256i g2 = _mm256_unpacklo_epi16(b, e); // groups 8..11, 24..27
    const __m256i g3 = _mm256_unpackhi_epi16(b, e); // groups 12..15, 28..31
    _mm256_storeu_si256((__m256i *) xs + 0, _mm256_permute2x128_si256(g0, g1, 0x20));
    _mm256_storeu_si256((__m256i *) xs + 1, _mm256_permute2x128_si256(g2, g3, 0x20));
    _mm256_storeu_si256((__m256i *) xs + 2, _mm256_permute2x128_si256(g0, g1, 0x31));
    _mm256_storeu_si256((__m256i *) xs + 3, _mm256_permute2x128_si256(g2, g3, 0x31));

    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        int four;
        memcpy(&four, xs + 4*g, sizeof(four));
        const __m256i xg = _mm256_set1_epi32(four);
        const __m256i pairs_lo = _mm256_maddubs_epi16(ones, _mm256_sign_epi8(xg, lo));
        const __m256i pairs_hi = _mm256_maddubs_epi16(ones, _mm256_sign_epi8(xg, hi));
        const __m256i t = _mm256_hadd_epi16(pairs_lo, pairs_hi);
        // round(t*1057/2^15), 1057/2^15 being a little more than 1/31: |t - 31*h| <= 15 for all |t| <= 381
        const __m256i h = _mm256_mulhrs_epi16(t, _mm256_set1_epi16(1057));
        const __m256i l = _mm256_sub_epi16(t, _mm256_mullo_epi16(h, _mm256_set1_epi16(BASE)));
        const __m256i lh = _mm256_permute4x64_epi64(_mm256_packs_epi16(l, h), _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_store_si256((__m256i *) tables + g, lh);
    }
}

// rows 0..31 of the scaled sums to dst
static inline void add_rows(const float d, const uint8_t * scales, __m256i lo, __m256i hi, float * dst, bool first) {
    const __m256i sums[4] = {
        _mm256_cvtepi16_epi32(_mm256_castsi256_si128(lo)),      // rows 0..7: unpacklo interleaves 128-bit lanes
        _mm256_cvtepi16_epi32(_mm256_castsi256_si128(hi)),      // rows 8..15
        _mm256_cvtepi16_epi32(_mm256_extracti128_si256(lo, 1)), // rows 16..23
        _mm256_cvtepi16_epi32(_mm256_extracti128_si256(hi, 1)), // rows 24..31
    };
    for (int i = 0; i < 4; ++i) {
        const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) scales + i));
        const __m256 sum   = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), _mm256_set1_ps(d));
        const __m256 old   = first ? _mm256_setzero_ps() : _mm256_loadu_ps(dst + 8*i);
        _mm256_storeu_ps(dst + 8*i, _mm256_fmadd_ps(sum, scale, old));
    }
}

// index and sign of one group, parts of its sum for each token
#define LOOK_UP(index, sign, group)                                                                            \
    for (int t = 0; t < n_tokens; ++t) {                                                                       \
        const __m128i * table = (const __m128i *) tables[t] + 2*(group);                                       \
        const __m256i lt = _mm256_broadcastsi128_si256(_mm_load_si128(table));                                 \
        const __m256i ht = _mm256_broadcastsi128_si256(_mm_load_si128(table + 1));                             \
        l[t] = _mm256_add_epi8(l[t], _mm256_sign_epi8(_mm256_shuffle_epi8(lt, index), sign));                  \
        h[t] = _mm256_add_epi8(h[t], _mm256_sign_epi8(_mm256_shuffle_epi8(ht, index), sign));                  \
    }

// one tile; n_tokens is a constant where this is inlined
static inline __attribute__((always_inline)) void mul_tile(
        const uint8_t * tile, const int n_tokens, const void * const * tables, const float * d, float * const * dst, bool first) {
    const __m256i nibble = _mm256_set1_epi8(0xF);
    const __m256i one    = _mm256_set1_epi8(1);
    const __m256i weight = _mm256_set1_epi16(1 | BASE << 8);
    const __m256i * qs    = (const __m256i *) tile;
    const __m256i * signs = qs + offsetof(block_sherry, signs);

    __m256i lo[SHERRY_MAX_TOKENS], hi[SHERRY_MAX_TOKENS];
    for (int t = 0; t < n_tokens; ++t) {
        lo[t] = hi[t] = _mm256_setzero_si256();
    }
    // 4 bytes are the groups 4*i..4*i+3 in their low nibbles, 16 more in the high ones
    for (int i = 0; i < 4; ++i) {
        // the sign of the group at hand in bit 7, bit 0 set because psignb makes zero of zero
        // words are shifted: what comes in from the byte below stays below bit 7
        __m256i sign_lo = _mm256_loadu_si256(signs + i/2);
        __m256i sign_hi = _mm256_loadu_si256(signs + i/2 + 2);
        if (i%2 == 0) {
            sign_lo = _mm256_slli_epi16(sign_lo, 4);
            sign_hi = _mm256_slli_epi16(sign_hi, 4);
        }
        __m256i l[SHERRY_MAX_TOKENS], h[SHERRY_MAX_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            l[t] = h[t] = _mm256_setzero_si256();
        }
#define BYTE(j)                                                                                                \
        {                                                                                                      \
            const __m256i byte = _mm256_loadu_si256(qs + 4*i + j);                                             \
            const __m256i il = _mm256_and_si256(byte, nibble);                                                 \
            const __m256i sl = _mm256_or_si256(_mm256_slli_epi16(sign_lo, 3 - j), one);                        \
            LOOK_UP(il, sl, 4*i + j)                                                                           \
            const __m256i ih = _mm256_and_si256(_mm256_srli_epi16(byte, 4), nibble);                           \
            const __m256i sh = _mm256_or_si256(_mm256_slli_epi16(sign_hi, 3 - j), one);                        \
            LOOK_UP(ih, sh, 16 + 4*i + j)                                                                      \
        }
        BYTE(0) BYTE(1) BYTE(2) BYTE(3)
#undef BYTE
        for (int t = 0; t < n_tokens; ++t) {
            lo[t] = _mm256_add_epi16(lo[t], _mm256_maddubs_epi16(weight, _mm256_unpacklo_epi8(l[t], h[t])));
            hi[t] = _mm256_add_epi16(hi[t], _mm256_maddubs_epi16(weight, _mm256_unpackhi_epi8(l[t], h[t])));
        }
    }
    for (int t = 0; t < n_tokens; ++t) {
        add_rows(d[t], tile + SHERRY_TILE_SCALES, lo[t], hi[t], dst[t], first);
    }
}

// n_tokens is a constant where this is inlined
static inline __attribute__((always_inline)) void mul_blocks(
        const uint8_t * tile, int n_blocks, const int n_tokens, const void * const * tables,
        const float * const * d, float * const * dst, bool first) {
    for (int b = 0; b < n_blocks; ++b) {
        const void * tables_b[SHERRY_MAX_TOKENS];
        float        d_b[SHERRY_MAX_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            tables_b[t] = (const __m256i *) tables[t] + b*SHERRY_GROUPS;
            d_b[t]      = d[t][b];
        }
        mul_tile(tile + (size_t) b*SHERRY_TILE_BYTES, n_tokens, tables_b, d_b, dst, first && b == 0);
    }
}

static void mul_avx2(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_tokens,
                     const void * const * tables, const float * const * d, float * const * dst, bool first) {
    for (int i = 0; i < n_tiles; ++i) {
        const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride;
        float * rows[SHERRY_MAX_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            rows[t] = dst[t] + SHERRY_TILE_ROWS*i;
        }
        switch (n_tokens) {
            case 1: mul_blocks(tile, n_blocks, 1, tables, d, rows, first); break;
            case 2: mul_blocks(tile, n_blocks, 2, tables, d, rows, first); break;
            case 3: mul_blocks(tile, n_blocks, 3, tables, d, rows, first); break;
            case 4: mul_blocks(tile, n_blocks, 4, tables, d, rows, first); break;
        }
    }
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx2 = {
    .name        = "avx2",
    .table_bytes = SHERRY_GROUPS*2*16,
    .max_tiles   = 4,
    .pack        = ggml_sherry_pack_bytes,
    .unpack      = ggml_sherry_unpack_bytes,
    .tables      = tables_avx2,
    .mul         = mul_avx2,
};

#endif
