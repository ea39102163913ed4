#include "tile-x86.h"

#if defined(SHERRY_ISA_AVX2)

// Tiles of bytes with AVX2: a register holds one byte of 32 rows, pshufb looks up 16 sums.
//
// A sum t = w0*x0 + .. + w3*x3 reaches 3*127 = 381, more than a byte: it is looked up in two parts, t = 31*h + l with
// |l| <= 15 and |h| <= 12. Where a row's sign says so, the parts are inverted: ~l is -l - 1, and the ones that are
// missing are made good at the end of the block. The parts of 8 groups add up in bytes (-128..120, -104..96); maddubs
// with (1, 31) puts the two together. 32 groups are 32*381 = 12192 at most: the rest of the block adds up in 16 bits.
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 2 pshufb, 2 pxor, 2 paddb and 6/8 of putting together; for
// all tokens at once 4.5 more: index 1.5, sign 2, counting signs 1.

#define BASE 31

#define AHEAD 8 // blocks

// group g: 16 bytes l, 16 bytes h
static void tables_avx2(const block_q8_sherry * x, void * tables) {
    // codes in the order that hadd, which works within 128 bits, makes 0..15 of: 0..3, 8..11 and 4..7, 12..15
    const __m256i w0 = _mm256_loadu_si256((const __m256i *) ggml_sherry_patterns);
    const __m256i w1 = _mm256_loadu_si256((const __m256i *) ggml_sherry_patterns + 1);
    const __m256i wa = _mm256_permute2x128_si256(w0, w1, 0x20);
    const __m256i wb = _mm256_permute2x128_si256(w0, w1, 0x31);
    const __m256i ones = _mm256_set1_epi8(1);

    int32_t groups[SHERRY_GROUPS];
    groups_of_planes(x, groups);
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        const __m256i xg = _mm256_set1_epi32(groups[g]);
        const __m256i pairs_a = _mm256_maddubs_epi16(ones, _mm256_sign_epi8(xg, wa));
        const __m256i pairs_b = _mm256_maddubs_epi16(ones, _mm256_sign_epi8(xg, wb));
        const __m256i t = _mm256_hadd_epi16(pairs_a, pairs_b);
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
        const __m256 of_rows = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) scales + i));
        const __m256 scale   = _mm256_mul_ps(of_rows, _mm256_set1_ps(d));
        const __m256 old     = first ? _mm256_setzero_ps() : _mm256_loadu_ps(dst + 8*i);
        _mm256_storeu_ps(dst + 8*i, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), scale, old));
    }
}

// one of l, h: looked up, and negated but for 1 where the sign says so
#define ADD_PART(sum, table)                                                                                   \
    sum = _mm256_add_epi8(sum, _mm256_xor_si256(                                                               \
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table)), index), sign));                \
    KEEP(sum);

// The 8 groups whose signs are byte k of a row, for each token: sums += 31*h + l. n_tokens and k are constants.
INLINE void add_groups(
        const __m256i * bytes, const int k, const int n_tokens, const __m128i * const * tables,
        __m256i * lo, __m256i * hi, __m256i * negative) {
    const __m256i weight = _mm256_set1_epi16(1 | BASE << 8);

    __m256i l[SHERRY_MAX_TOKENS], h[SHERRY_MAX_TOKENS];
    UNROLL for (int t = 0; t < n_tokens; ++t) {
        l[t] = h[t] = _mm256_setzero_si256();
    }
    __m256i signs = _mm256_loadu_si256(bytes + offsetof(block_sherry, signs) + k);
    UNROLL for (int j = 7; j >= 0; --j) { // the sign of group j is in bit 7
        __m256i index = _mm256_loadu_si256(bytes + 8*(k%2) + j);
        if (k >= 2) {
            index = _mm256_srli_epi16(index, 4);
        }
        index = _mm256_and_si256(index, _mm256_set1_epi8(0xF));
        const __m256i sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), signs); // 0 or -1
        *negative = _mm256_sub_epi8(*negative, sign);
        signs = _mm256_add_epi8(signs, signs);
        UNROLL for (int t = 0; t < n_tokens; ++t) {
            ADD_PART(l[t], tables[t] + 2*(8*k + j))
            ADD_PART(h[t], tables[t] + 2*(8*k + j) + 1)
        }
    }
    UNROLL for (int t = 0; t < n_tokens; ++t) {
        lo[t] = _mm256_add_epi16(lo[t], _mm256_maddubs_epi16(weight, _mm256_unpacklo_epi8(l[t], h[t])));
        hi[t] = _mm256_add_epi16(hi[t], _mm256_maddubs_epi16(weight, _mm256_unpackhi_epi8(l[t], h[t])));
    }
}

// The weights of one block of one tile that share a scale, the k-th of n_scales. k, n_scales and n_tokens are constants.
// GCC is given calls, not a loop over k: a loop that it unrolls itself makes four tokens 8% slower.
INLINE void mul_scale(
        const uint8_t * tile, const int k, const int n_scales, const int n_tokens, const __m128i * const * tables,
        const float * const * d, float * const * dst, bool first) {
    const __m256i * bytes = (const __m256i *) tile;

    __m256i lo[SHERRY_MAX_TOKENS], hi[SHERRY_MAX_TOKENS];
    for (int t = 0; t < n_tokens; ++t) {
        lo[t] = hi[t] = _mm256_setzero_si256();
    }
    __m256i negative = _mm256_setzero_si256(); // groups of a row whose sign is set
    add_groups(bytes, k, n_tokens, tables, lo, hi, &negative);
    if (n_scales == 1) {
        add_groups(bytes, 1, n_tokens, tables, lo, hi, &negative);
        add_groups(bytes, 2, n_tokens, tables, lo, hi, &negative);
        add_groups(bytes, 3, n_tokens, tables, lo, hi, &negative);
    }

    // ~x is -x - 1: each of them lacks 1 in l and 31 in h
    const __m256i lack_lo = _mm256_slli_epi16(_mm256_unpacklo_epi8(negative, _mm256_setzero_si256()), 5);
    const __m256i lack_hi = _mm256_slli_epi16(_mm256_unpackhi_epi8(negative, _mm256_setzero_si256()), 5);
    for (int t = 0; t < n_tokens; ++t) {
        lo[t] = _mm256_add_epi16(lo[t], lack_lo);
        hi[t] = _mm256_add_epi16(hi[t], lack_hi);
        add_rows(d[t][k], tile + SHERRY_TILE_SCALES + 2*SHERRY_TILE_ROWS*k, lo[t], hi[t], dst[t], first && k == 0);
    }
}

// one block of one tile; n_scales and n_tokens are constants where this is inlined
INLINE void mul_tile(
        const uint8_t * tile, const int n_scales, const int n_tokens, const __m128i * const * tables,
        const float * const * d, float * const * dst, bool first) {
    mul_scale(tile, 0, n_scales, n_tokens, tables, d, dst, first);
    if (n_scales == SHERRY_G32_SCALES) {
        mul_scale(tile, 1, n_scales, n_tokens, tables, d, dst, first);
        mul_scale(tile, 2, n_scales, n_tokens, tables, d, dst, first);
        mul_scale(tile, 3, n_scales, n_tokens, tables, d, dst, first);
    }
}

// n_scales and n_tokens are constants where this is inlined
INLINE void mul_blocks(
        const uint8_t * tile, size_t tile_stride, int n_blocks, int n_planes, const int n_scales, const int n_tokens,
        const void * const * tables, const float * const * d, float * const * dst, bool first, bool prefetch) {
    const size_t tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    // Weights come from memory: they are asked for some blocks ahead, at the end of a row of tiles those of the next.
    // As an integer, because a pointer must not leave its array.
    const size_t in_row   = AHEAD*tile_bytes;
    const size_t next_row = tile_stride + in_row - n_blocks*tile_bytes;

    for (int b = 0; b < n_blocks; ++b) {
        const int met = ggml_sherry_met_block(b, n_planes);
        const uintptr_t ahead = (uintptr_t) tile + b*tile_bytes + (b + AHEAD < n_blocks ? in_row : next_row);
        for (size_t i = 0; prefetch && i < tile_bytes; i += 64) {
            _mm_prefetch((const char *) (ahead + i), _MM_HINT_T0);
        }
        const __m128i * tables_b[SHERRY_MAX_TOKENS];
        const float   * d_b[SHERRY_MAX_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            tables_b[t] = (const __m128i *) tables[t] + 2*SHERRY_GROUPS*met;
            d_b[t]      = d[t] + n_scales*met;
        }
        mul_tile(tile + b*tile_bytes, n_scales, n_tokens, tables_b, d_b, dst, first && b == 0);
    }
}

// n_scales is a constant where this is inlined
INLINE void mul_tiles(
        int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, const int n_scales, int n_tokens,
        const void * const * tables, const float * const * d, float * const * dst, bool first, bool prefetch) {
    for (int i = 0; i < n_tiles; ++i) {
        const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride;
        float * rows[SHERRY_MAX_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            rows[t] = dst[t] + SHERRY_TILE_ROWS*i;
        }
        switch (n_tokens) {
            case 1: mul_blocks(tile, tile_stride, n_blocks, n_planes, n_scales, 1, tables, d, rows, first, prefetch); break;
            case 2: mul_blocks(tile, tile_stride, n_blocks, n_planes, n_scales, 2, tables, d, rows, first, prefetch); break;
            case 3: mul_blocks(tile, tile_stride, n_blocks, n_planes, n_scales, 3, tables, d, rows, first, prefetch); break;
            case 4: mul_blocks(tile, tile_stride, n_blocks, n_planes, n_scales, 4, tables, d, rows, first, prefetch); break;
        }
    }
}

static void mul_avx2(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                     const void * const * tables, const float * const * d, float * const * dst, bool first,
                     bool prefetch) {
    mul_tiles(n_tiles, tile_stride, tiles, n_blocks, n_planes, 1, n_tokens, tables, d, dst, first, prefetch);
}

static void mul_g32_avx2(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                         const void * const * tables, const float * const * d, float * const * dst, bool first,
                         bool prefetch) {
    mul_tiles(n_tiles, tile_stride, tiles, n_blocks, n_planes, SHERRY_G32_SCALES, n_tokens, tables, d, dst, first, prefetch);
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx2 = {
    .name        = "avx2",
    .table_bytes = SHERRY_GROUPS*2*16,
    .max_tiles   = 4,
    .pack        = ggml_sherry_pack_bytes_avx2,
    .unpack      = ggml_sherry_unpack_bytes,
    .pack_stq1_0 = ggml_sherry_pack_stq1_0_avx2,
    .pack_g32    = ggml_sherry_pack_g32_avx2,
    .tables      = tables_avx2,
    .tables_g32  = tables_avx2,
    .mul         = mul_avx2,
    .mul_g32     = mul_g32_avx2,
};

#endif
