#include "isa.h"
#include "tile.h"

#if defined(SHERRY_ISA_AVX2)

#include <immintrin.h>
#include <string.h>

// Rows to tiles of bytes with AVX2: transposing. It is done at load, and in each product of weights that stay in rows.
//
// The low half of a register belongs to rows 0..15, the high half to rows 16..31. Unpacking the bytes of registers i and
// i + n/2, for all i, to registers 2*i and 2*i + 1 rotates the bits of a byte's number, register above place, by one:
// four times make columns of 16 rows of n columns, if the registers were filled in the right order.

// Eight columns: n_rounds times. Eight registers and one for what is exchanged fit in sixteen.
INLINE void unpack_8(__m256i v[8], const int n_rounds) {
    UNROLL for (int round = 0; round < n_rounds; ++round) {
        __m256i u[8];
        UNROLL for (int i = 0; i < 4; ++i) {
            u[2*i]     = _mm256_unpacklo_epi8(v[i], v[i + 4]);
            u[2*i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 4]);
        }
        UNROLL for (int i = 0; i < 8; ++i) {
            v[i] = u[i];
        }
    }
}

// 16 bytes of each row: after the first time the lower eight columns and the upper eight have nothing in common.
static inline void columns_of_indices(const uint8_t * qs, size_t row_bytes, __m256i * columns) {
    __m256i lower[8], upper[8];
    UNROLL for (int i = 0; i < 8; ++i) {
        const uint8_t * row = qs + i*row_bytes;
        const __m256i a = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) row)),
            _mm_loadu_si128((const __m128i *) (row + 16*row_bytes)), 1);
        const __m256i b = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) (row + 8*row_bytes))),
            _mm_loadu_si128((const __m128i *) (row + 24*row_bytes)), 1);
        lower[i] = _mm256_unpacklo_epi8(a, b);
        upper[i] = _mm256_unpackhi_epi8(a, b);
    }
    unpack_8(lower, 3);
    UNROLL for (int i = 0; i < 8; ++i) {
        _mm256_storeu_si256(columns + i, lower[i]);
    }
    unpack_8(upper, 3);
    UNROLL for (int i = 0; i < 8; ++i) {
        _mm256_storeu_si256(columns + 8 + i, upper[i]);
    }
}

static inline __m128i load_two(const uint8_t * low, const uint8_t * high) {
    return _mm_castps_si128(_mm_loadh_pi(
        _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *) low)), (const __m64 *) high));
}

// 8 bytes of each row
static inline void columns_of_8(const uint8_t * bytes, size_t row_bytes, __m256i v[8]) {
    UNROLL for (int i = 0; i < 8; ++i) {
        const uint8_t * row = bytes + 2*i*row_bytes;
        v[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load_two(row, row + row_bytes)),
            load_two(row + 16*row_bytes, row + 17*row_bytes), 1);
    }
    unpack_8(v, 4);
}

static inline void store_scales(__m256i first, __m256i second, __m256i * scales) {
    const __m256i lo = _mm256_unpacklo_epi8(first, second); // rows 0..7, 16..23
    const __m256i hi = _mm256_unpackhi_epi8(first, second); // rows 8..15, 24..31
    _mm256_storeu_si256(scales + 0, _mm256_permute2x128_si256(lo, hi, 0x20));
    _mm256_storeu_si256(scales + 1, _mm256_permute2x128_si256(lo, hi, 0x31));
}

void ggml_sherry_pack_bytes_avx2(const block_sherry * rows, size_t row_blocks, void * tile) {
    const uint8_t * codes     = (const uint8_t *) rows;
    const size_t    row_bytes = row_blocks*sizeof(block_sherry);
    __m256i * out = tile;
    columns_of_indices(codes, row_bytes, out);

    __m256i v[8]; // 2 bytes of indices, 4 of signs, 2 of the scale
    columns_of_8(codes + offsetof(block_sherry, signs) - 2, row_bytes, v);
    UNROLL for (int i = 0; i < 4; ++i) {
        _mm256_storeu_si256(out + 16 + i, v[2 + i]);
    }
    store_scales(v[6], v[7], out + 20);
}

// bytes of signs of all rows: of the two bytes, the even bits and the odd ones
static inline void split_signs(__m256i a, __m256i b, __m256i * even, __m256i * odd) {
    // of four bits: the even two, and the odd two 4 bits higher
    const __m256i split = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0x00, 0x01, 0x10, 0x11, 0x02, 0x03, 0x12, 0x13, 0x20, 0x21, 0x30, 0x31, 0x22, 0x23, 0x32, 0x33));
    const __m256i low = _mm256_set1_epi8(0xF);
    const __m256i two[2] = { a, b };
    __m256i s[2];
    UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i of_low  = _mm256_shuffle_epi8(split, _mm256_and_si256(two[i], low));
        const __m256i of_high = _mm256_shuffle_epi8(split, _mm256_and_si256(_mm256_srli_epi16(two[i], 4), low));
        s[i] = _mm256_or_si256(of_low, _mm256_slli_epi16(of_high, 2));
    }
    *even = _mm256_or_si256(_mm256_and_si256(s[0], low), _mm256_slli_epi16(_mm256_and_si256(s[1], low), 4));
    *odd  = _mm256_or_si256(_mm256_andnot_si256(low, s[1]), _mm256_srli_epi16(_mm256_andnot_si256(low, s[0]), 4));
}

void ggml_sherry_pack_stq1_0_avx2(const block_stq1_0 * rows, size_t row_blocks, void * tiles) {
    const uint8_t * codes     = (const uint8_t *) rows;
    const size_t    row_bytes = row_blocks*sizeof(block_stq1_0);

    __m256i signs[8], scales[8]; // the scale is read with 6 bytes before it
    columns_of_8(codes + offsetof(block_stq1_0, sign), row_bytes, signs);
    columns_of_8(codes + offsetof(block_stq1_0, d) - 6, row_bytes, scales);
    for (int i = 0; i < 2; ++i) {
        __m256i * tile = (__m256i *) ((uint8_t *) tiles + i*SHERRY_TILE_BYTES);
        columns_of_indices(codes + 16*i, row_bytes, tile);

        __m256i s[4];
        split_signs(signs[4*i],     signs[4*i + 1], s + 0, s + 2);
        split_signs(signs[4*i + 2], signs[4*i + 3], s + 1, s + 3);
        UNROLL for (int j = 0; j < 4; ++j) {
            _mm256_storeu_si256(tile + 16 + j, s[j]);
        }
        store_scales(scales[6], scales[7], tile + 20);
    }
}

// Four blocks of 7 bytes: SHERRY has the first group of block 0 or 1 in a byte with that of block 2 or 3.
void ggml_sherry_pack_g32_avx2(const block_sherry_g32 * rows, size_t row_blocks, int n_blocks, void * tile) {
    enum { ROW_BYTES = SHERRY_G32_SCALES*sizeof(block_sherry_g32), INDICES = sizeof(((block_sherry_g32 *) 0)->qs) };
    const uint8_t * codes     = (const uint8_t *) rows;
    size_t          row_bytes = row_blocks*sizeof(block_sherry_g32);

    uint8_t whole[SHERRY_TILE_ROWS][ROW_BYTES];
    if (n_blocks < SHERRY_G32_SCALES) { // nothing beyond the rows is read
        memset(whole, 0, sizeof(whole));
        for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
            memcpy(whole[r], codes + r*row_bytes, n_blocks*sizeof(block_sherry_g32));
        }
        codes     = whole[0];
        row_bytes = ROW_BYTES;
    }
    __m256i columns[ROW_BYTES];
    columns_of_indices(codes, row_bytes, columns);
    columns_of_indices(codes + ROW_BYTES - 16, row_bytes, columns + ROW_BYTES - 16);

    const __m256i low = _mm256_set1_epi8(0xF);
    __m256i * out = tile;
    for (int k = 0; k < 2; ++k) { // and block k + 2
        const __m256i * a = columns + k*sizeof(block_sherry_g32);
        const __m256i * b = a + 2*sizeof(block_sherry_g32);
        for (int j = 0; j < INDICES; ++j) {
            const __m256i first  = _mm256_and_si256(a[j], low);
            const __m256i second = _mm256_and_si256(b[j], low);
            const __m256i later  = _mm256_and_si256(_mm256_srli_epi16(a[j], 4), low);
            _mm256_storeu_si256(out + 8*k + j, _mm256_or_si256(first, _mm256_slli_epi16(second, 4)));
            _mm256_storeu_si256(out + 8*k + INDICES + j, _mm256_or_si256(later, _mm256_andnot_si256(low, b[j])));
        }
    }
    for (int k = 0; k < SHERRY_G32_SCALES; ++k) {
        const __m256i * block = columns + k*sizeof(block_sherry_g32);
        _mm256_storeu_si256(out + 16 + k, block[INDICES]);
        store_scales(block[INDICES + 1], block[INDICES + 2], out + 20 + 2*k);
    }
}

#endif
