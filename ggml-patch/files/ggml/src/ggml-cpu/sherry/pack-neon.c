#include "isa.h"
#include "tile.h"

#if defined(SHERRY_ISA_NEON)

#include <arm_neon.h>
#include <string.h>

// Rows to tiles of bytes with NEON: pack-avx2.c says how, with registers twice as wide.

INLINE void zip_8(uint8x16_t v[8], const int n_rounds) {
    UNROLL for (int round = 0; round < n_rounds; ++round) {
        uint8x16_t u[8];
        UNROLL for (int i = 0; i < 4; ++i) {
            u[2*i]     = vzip1q_u8(v[i], v[i + 4]);
            u[2*i + 1] = vzip2q_u8(v[i], v[i + 4]);
        }
        UNROLL for (int i = 0; i < 8; ++i) {
            v[i] = u[i];
        }
    }
}

// 16 bytes of each of 16 rows
static inline void columns_of_indices(const uint8_t * qs, size_t row_bytes, uint8_t * columns) {
    uint8x16_t lower[8], upper[8];
    UNROLL for (int i = 0; i < 8; ++i) {
        const uint8x16_t a = vld1q_u8(qs + i*row_bytes);
        const uint8x16_t b = vld1q_u8(qs + (i + 8)*row_bytes);
        lower[i] = vzip1q_u8(a, b);
        upper[i] = vzip2q_u8(a, b);
    }
    zip_8(lower, 3);
    zip_8(upper, 3);
    UNROLL for (int i = 0; i < 8; ++i) {
        vst1q_u8(columns + i*SHERRY_TILE_ROWS, lower[i]);
        vst1q_u8(columns + (i + 8)*SHERRY_TILE_ROWS, upper[i]);
    }
}

// 8 bytes of each of 16 rows
static inline void columns_of_8(const uint8_t * bytes, size_t row_bytes, uint8x16_t v[8]) {
    UNROLL for (int i = 0; i < 8; ++i) {
        const uint8_t * two_rows = bytes + 2*i*row_bytes;
        v[i] = vcombine_u8(vld1_u8(two_rows), vld1_u8(two_rows + row_bytes));
    }
    zip_8(v, 4);
}

static inline void store_scales(uint8x16_t first, uint8x16_t second, uint8_t * scales) {
    vst1q_u8(scales,      vzip1q_u8(first, second));
    vst1q_u8(scales + 16, vzip2q_u8(first, second));
}

void ggml_sherry_pack_bytes_neon(const block_sherry * rows, size_t row_blocks, void * tile) {
    const size_t row_bytes = row_blocks*sizeof(block_sherry);
    for (int half = 0; half < 2; ++half) {
        const uint8_t * codes = (const uint8_t *) rows + 16*half*row_bytes;
        uint8_t       * out   = (uint8_t *) tile + 16*half;
        columns_of_indices(codes, row_bytes, out);

        uint8x16_t v[8]; // 2 bytes of indices, 4 of signs, 2 of the scale
        columns_of_8(codes + offsetof(block_sherry, signs) - 2, row_bytes, v);
        UNROLL for (int i = 0; i < 4; ++i) {
            vst1q_u8(out + (16 + i)*SHERRY_TILE_ROWS, v[2 + i]);
        }
        store_scales(v[6], v[7], (uint8_t *) tile + SHERRY_TILE_SCALES + 32*half);
    }
}

// bytes of signs of rows 0..15: of the two bytes, the even bits and the odd ones
static inline void split_signs(uint8x16_t a, uint8x16_t b, uint8x16_t * even, uint8x16_t * odd) {
    // of four bits: the even two, and the odd two 4 bits higher
    static const uint8_t split[16] = {
        0x00, 0x01, 0x10, 0x11, 0x02, 0x03, 0x12, 0x13, 0x20, 0x21, 0x30, 0x31, 0x22, 0x23, 0x32, 0x33,
    };
    const uint8x16_t table = vld1q_u8(split);
    const uint8x16_t low = vdupq_n_u8(0xF);
    const uint8x16_t sa = vorrq_u8(
        vqtbl1q_u8(table, vandq_u8(a, low)), vshlq_n_u8(vqtbl1q_u8(table, vshrq_n_u8(a, 4)), 2));
    const uint8x16_t sb = vorrq_u8(
        vqtbl1q_u8(table, vandq_u8(b, low)), vshlq_n_u8(vqtbl1q_u8(table, vshrq_n_u8(b, 4)), 2));
    *even = vsliq_n_u8(sa, sb, 4);
    *odd  = vsriq_n_u8(sb, sa, 4);
}

void ggml_sherry_pack_stq1_0_neon(const block_stq1_0 * rows, size_t row_blocks, void * tiles) {
    const size_t row_bytes = row_blocks*sizeof(block_stq1_0);
    for (int half = 0; half < 2; ++half) { // of the rows
        const uint8_t * codes = (const uint8_t *) rows + 16*half*row_bytes;

        uint8x16_t signs[8], scales[8]; // the scale is read with 6 bytes before it
        columns_of_8(codes + offsetof(block_stq1_0, sign), row_bytes, signs);
        columns_of_8(codes + offsetof(block_stq1_0, d) - 6, row_bytes, scales);
        for (int i = 0; i < 2; ++i) { // of the block
            uint8_t * tile = (uint8_t *) tiles + i*SHERRY_TILE_BYTES;
            columns_of_indices(codes + 16*i, row_bytes, tile + 16*half);

            uint8x16_t s[4];
            split_signs(signs[4*i],     signs[4*i + 1], s + 0, s + 2);
            split_signs(signs[4*i + 2], signs[4*i + 3], s + 1, s + 3);
            UNROLL for (int j = 0; j < 4; ++j) {
                vst1q_u8(tile + 16*half + (16 + j)*SHERRY_TILE_ROWS, s[j]);
            }
            store_scales(scales[6], scales[7], tile + SHERRY_TILE_SCALES + 32*half);
        }
    }
}

// Four blocks of 7 bytes: SHERRY has the first group of block 0 or 1 in a byte with that of block 2 or 3.
void ggml_sherry_pack_g32_neon(const block_sherry_g32 * rows, size_t row_blocks, int n_blocks, void * tile) {
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
    uint8_t columns[ROW_BYTES][SHERRY_TILE_ROWS];
    for (int half = 0; half < 2; ++half) { // of the rows
        const uint8_t * from = codes + 16*half*row_bytes;
        columns_of_indices(from, row_bytes, columns[0] + 16*half);
        columns_of_indices(from + ROW_BYTES - 16, row_bytes, columns[ROW_BYTES - 16] + 16*half);
    }
    for (int at = 0; at < SHERRY_TILE_ROWS; at += 16) {
        uint8_t * out = (uint8_t *) tile + at;
        for (int k = 0; k < 2; ++k) { // and block k + 2
            for (int j = 0; j < INDICES; ++j) {
                const uint8x16_t a = vld1q_u8(columns[k*sizeof(block_sherry_g32) + j] + at);
                const uint8x16_t b = vld1q_u8(columns[(k + 2)*sizeof(block_sherry_g32) + j] + at);
                vst1q_u8(out + (8*k + j)*SHERRY_TILE_ROWS,           vsliq_n_u8(a, b, 4));
                vst1q_u8(out + (8*k + INDICES + j)*SHERRY_TILE_ROWS, vsriq_n_u8(b, a, 4));
            }
        }
        for (int k = 0; k < SHERRY_G32_SCALES; ++k) {
            const uint8_t (* block)[SHERRY_TILE_ROWS] = columns + k*sizeof(block_sherry_g32);
            vst1q_u8(out + (16 + k)*SHERRY_TILE_ROWS, vld1q_u8(block[INDICES] + at));
            store_scales(vld1q_u8(block[INDICES + 1] + at), vld1q_u8(block[INDICES + 2] + at),
                         (uint8_t *) tile + SHERRY_TILE_SCALES + 2*SHERRY_TILE_ROWS*k + 2*at);
        }
    }
}

#endif
