#include "isa.h"
#include "tile.h"

#if defined(SHERRY_ISA_NEON)

#include <arm_neon.h>
#include <string.h>

// Tiles of bytes with NEON: a register holds one byte of 16 rows, tbl looks up 16 sums.
//
// A sum t = w0*x0 + .. + w3*x3 reaches 3*127 = 381, more than a byte: it is looked up in two parts, t = 31*h + l with
// |l| <= 15 and |h| <= 12, as with AVX2. mla multiplies a part with the row's sign, 1 or -1, and adds it: parts of 8
// groups fit bytes (120 and 96 at most). The sums of 32 groups fit 16 bits: 32*381 = 12192 at most, and no more than
// 8*15 beside that while only one of the parts is added.
//
// Signs are looked up as well: a table for each bit makes 1 or -1 of the signs of four groups.
//
// Operations for 32 rows x 1 group x 1 token, 128 weights: 4 tbl, 4 mla, 1 of widening, 1 or 2 loads of tables; for all
// tokens at once 4.5 to take index and sign from the bytes. scripts/count_arm.py counts what compilers make of it.

#define BASE            31
#define TABLE_BYTES     (SHERRY_GROUPS*2*16)
#define PREFETCH_BLOCKS 4
#define TOKENS          4 // at once

// group g: 16 bytes l, 16 bytes h
static void tables_neon(const block_q8_sherry * x, void * tables) {
    int8_t * out = tables;
    const int8x16x4_t w = vld4q_s8(ggml_sherry_patterns[0]); // w.val[p]: weight p of the 16 patterns
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        int16x8_t t[2] = { vdupq_n_s16(0), vdupq_n_s16(0) };
        for (int p = 0; p < 4; ++p) {
            const int8x16_t xp = vld1q_dup_s8(x->qs + p*SHERRY_GROUPS + g);
            t[0] = vmlal_s8(t[0], vget_low_s8(w.val[p]), vget_low_s8(xp));
            t[1] = vmlal_high_s8(t[1], w.val[p], xp);
        }
        int16x8_t h[2], l[2];
        for (int i = 0; i < 2; ++i) {
            // round(t*1057/2^15), 1057/2^15 being a little more than 1/31: |t - 31*h| <= 15 for all |t| <= 381
            h[i] = vqrdmulhq_n_s16(t[i], 1057);
            l[i] = vmlsq_n_s16(t[i], h[i], BASE);
        }
        vst1q_s8(out + 32*g,      vmovn_high_s16(vmovn_s16(l[0]), l[1]));
        vst1q_s8(out + 32*g + 16, vmovn_high_s16(vmovn_s16(h[0]), h[1]));
    }
}

static const int8_t signs_of_bits[4][16] = {
    { 1, -1,  1, -1,  1, -1,  1, -1,  1, -1,  1, -1,  1, -1,  1, -1 },
    { 1,  1, -1, -1,  1,  1, -1, -1,  1,  1, -1, -1,  1,  1, -1, -1 },
    { 1,  1,  1,  1, -1, -1, -1, -1,  1,  1,  1,  1, -1, -1, -1, -1 },
    { 1,  1,  1,  1,  1,  1,  1,  1, -1, -1, -1, -1, -1, -1, -1, -1 },
};

// four rows: their sums, scaled, added to dst
static inline void add_rows(int32x4_t sum, float d, float32x4_t scale, float * dst) {
    vst1q_f32(dst, vfmaq_f32(vld1q_f32(dst), vcvtq_f32_s32(sum), vmulq_n_f32(scale, d)));
}

// keeps gcc from loading tables long before they are used, for which there are no registers
#define BARRIER __asm__ volatile("" ::: "memory");

// the parts of one group, for each token; bit `bit` of the nibbles `signs` is the sign
#define ADD_GROUP(group, index, signs, bit)                                                                    \
    {                                                                                                          \
        BARRIER                                                                                                \
        int8x16_t sign[2]; /* 1 or -1 */                                                                       \
        for (int r = 0; r < n_regs; ++r) {                                                                     \
            sign[r] = vqtbl1q_s8(sign_of_bit[bit], signs[r]);                                                  \
        }                                                                                                      \
        for (int t = 0; t < n_tokens; ++t) {                                                                   \
            const int8x16_t lt = vld1q_s8(tables[t] + 32*(group));                                             \
            const int8x16_t ht = vld1q_s8(tables[t] + 32*(group) + 16);                                        \
            for (int r = 0; r < n_regs; ++r) {                                                                 \
                l[t][r] = vmlaq_s8(l[t][r], vqtbl1q_s8(lt, index[r]), sign[r]);                                \
                h[t][r] = vmlaq_s8(h[t][r], vqtbl1q_s8(ht, index[r]), sign[r]);                                \
            }                                                                                                  \
        }                                                                                                      \
    }

// byte j of the four at `first`: its low nibbles are the group with the byte's number, the high ones that and 16
#define ADD_BYTE(first, j)                                                                                     \
    {                                                                                                          \
        uint8x16_t low[2], high[2];                                                                            \
        for (int r = 0; r < n_regs; ++r) {                                                                     \
            const uint8x16_t byte = vld1q_u8(qs + ((first) + (j))*SHERRY_TILE_ROWS + 16*r);                    \
            low[r]  = vandq_u8(byte, vdupq_n_u8(0xF));                                                         \
            high[r] = vshrq_n_u8(byte, 4);                                                                     \
        }                                                                                                      \
        ADD_GROUP((first) + (j),      low,  low_signs,  j)                                                     \
        ADD_GROUP((first) + (j) + 16, high, high_signs, j)                                                     \
    }

// the parts of 8 groups to the sums
#define ADD_PARTS                                                                                              \
    for (int t = 0; t < n_tokens; ++t) {                                                                       \
        for (int r = 0; r < n_regs; ++r) {                                                                     \
            lo[t][r] = vaddw_s8(lo[t][r], vget_low_s8(l[t][r]));                                               \
            hi[t][r] = vaddw_high_s8(hi[t][r], l[t][r]);                                                       \
            lo[t][r] = vmlal_s8(lo[t][r], vget_low_s8(h[t][r]), vdup_n_s8(BASE));                              \
            hi[t][r] = vmlal_high_s8(hi[t][r], h[t][r], vdupq_n_s8(BASE));                                     \
        }                                                                                                      \
    }

// four bytes, 8 groups: their parts, and these to the sums; NIBBLE takes their signs from the bytes of signs
#define ADD_BYTES(first, NIBBLE)                                                                               \
    {                                                                                                          \
        uint8x16_t low_signs[2], high_signs[2];                                                                \
        int8x16_t l[TOKENS][2], h[TOKENS][2];                                                                  \
        for (int r = 0; r < n_regs; ++r) {                                                                     \
            low_signs[r]  = NIBBLE(vld1q_u8(signs + i*SHERRY_TILE_ROWS + 16*r));                               \
            high_signs[r] = NIBBLE(vld1q_u8(signs + (i + 2)*SHERRY_TILE_ROWS + 16*r));                         \
            for (int t = 0; t < n_tokens; ++t) {                                                               \
                l[t][r] = h[t][r] = vdupq_n_s8(0);                                                             \
            }                                                                                                  \
        }                                                                                                      \
        ADD_BYTE(first, 0) ADD_BYTE(first, 1) ADD_BYTE(first, 2) ADD_BYTE(first, 3)                            \
        ADD_PARTS                                                                                              \
    }

#define LOW(bytes)  vandq_u8(bytes, vdupq_n_u8(0xF))
#define HIGH(bytes) vshrq_n_u8(bytes, 4)

// group 8*k + j + at of SHERRY_G32: a nibble of byte 8*(k%2) + j + at
#define ADD_NIBBLE(at, j, signs)                                                                               \
    {                                                                                                          \
        uint8x16_t index[2];                                                                                   \
        for (int r = 0; r < n_regs; ++r) {                                                                     \
            const uint8x16_t byte = vld1q_u8(qs + (8*(k%2) + (j) + (at))*SHERRY_TILE_ROWS + 16*r);             \
            index[r] = k < 2 ? LOW(byte) : HIGH(byte);                                                         \
        }                                                                                                      \
        ADD_GROUP(8*k + (j) + (at), index, signs, j)                                                           \
    }

// the sums of n_regs registers of rows, times their scales, to the results
INLINE void flush(
        const uint8_t * scales, const int row, const int n_regs, const int n_tokens, const float * d, float * const * dst,
        int16x8_t lo[TOKENS][2], int16x8_t hi[TOKENS][2]) {
    for (int r = 0; r < n_regs; ++r) {
        const float16x8_t s0 = vreinterpretq_f16_u8(vld1q_u8(scales + 2*(row + 16*r)));
        const float16x8_t s1 = vreinterpretq_f16_u8(vld1q_u8(scales + 2*(row + 16*r) + 16));
        for (int t = 0; t < n_tokens; ++t) {
            float * out = dst[t] + row + 16*r;
            add_rows(vmovl_s16(vget_low_s16(lo[t][r])), d[t], vcvt_f32_f16(vget_low_f16(s0)), out);
            add_rows(vmovl_high_s16(lo[t][r]),          d[t], vcvt_high_f32_f16(s0),          out + 4);
            add_rows(vmovl_s16(vget_low_s16(hi[t][r])), d[t], vcvt_f32_f16(vget_low_f16(s1)), out + 8);
            add_rows(vmovl_high_s16(hi[t][r]),          d[t], vcvt_high_f32_f16(s1),          out + 12);
        }
    }
}

// One block of n_regs registers of rows: as many as the sums of n_tokens leave room for. n_scales and both are constants
// where this is inlined.
INLINE void mul_rows(
        const uint8_t * tile, const int n_scales, const int row, const int n_regs, const int n_tokens,
        const int8_t * const * tables, const float * const * d, float * const * dst) {
    const uint8_t * qs     = tile + row;
    const uint8_t * signs  = qs + offsetof(block_sherry, signs)*SHERRY_TILE_ROWS;
    const uint8_t * scales = tile + SHERRY_TILE_SCALES;

    int8x16_t sign_of_bit[4]; // by the signs of four groups: 1 or -1
    for (int bit = 0; bit < 4; ++bit) {
        sign_of_bit[bit] = vld1q_s8(signs_of_bits[bit]);
        __asm__("" : "+w"(sign_of_bit[bit])); // not known to gcc as a constant, which it would load anew for each use
    }
    int16x8_t lo[TOKENS][2], hi[TOKENS][2]; // the first and the last eight rows of a register
    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_regs; ++r) {
            lo[t][r] = hi[t][r] = vdupq_n_s16(0);
        }
    }
    float d_k[TOKENS];
    if (n_scales == 1) {
        for (int i = 0; i < 2; ++i) { // two bytes of signs: groups 8*i..8*i+7, and 16 more
            ADD_BYTES(8*i, LOW)
            ADD_BYTES(8*i + 4, HIGH)
        }
        for (int t = 0; t < n_tokens; ++t) {
            d_k[t] = d[t][0];
        }
        flush(scales, row, n_regs, n_tokens, d_k, dst, lo, hi);
        return;
    }
    UNROLL for (int k = 0; k < n_scales; ++k) {
        uint8x16_t low_signs[2], high_signs[2];
        int8x16_t l[TOKENS][2], h[TOKENS][2];
        for (int r = 0; r < n_regs; ++r) {
            const uint8x16_t byte = vld1q_u8(signs + k*SHERRY_TILE_ROWS + 16*r);
            low_signs[r]  = LOW(byte);
            high_signs[r] = HIGH(byte);
            for (int t = 0; t < n_tokens; ++t) {
                l[t][r] = h[t][r] = vdupq_n_s8(0);
            }
        }
        ADD_NIBBLE(0, 0, low_signs)  ADD_NIBBLE(0, 1, low_signs)  ADD_NIBBLE(0, 2, low_signs)  ADD_NIBBLE(0, 3, low_signs)
        ADD_NIBBLE(4, 0, high_signs) ADD_NIBBLE(4, 1, high_signs) ADD_NIBBLE(4, 2, high_signs) ADD_NIBBLE(4, 3, high_signs)
        ADD_PARTS
        for (int t = 0; t < n_tokens; ++t) {
            d_k[t] = d[t][k];
        }
        flush(scales + 2*SHERRY_TILE_ROWS*k, row, n_regs, n_tokens, d_k, dst, lo, hi);
        for (int t = 0; t < n_tokens; ++t) {
            for (int r = 0; r < n_regs; ++r) {
                lo[t][r] = hi[t][r] = vdupq_n_s16(0);
            }
        }
    }
}

// all blocks of a tile; n_scales and n_tokens are constants where this is inlined
INLINE void mul_tile(
        const uint8_t * tile, int n_blocks, int n_planes, const int n_scales, const int n_tokens, const void * const * tables,
        const float * const * d, float * const * dst, size_t row, bool first, bool prefetch) {
    const size_t tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    float * rows[TOKENS];
    for (int t = 0; t < n_tokens; ++t) {
        rows[t] = dst[t] + row;
        if (first) {
            memset(rows[t], 0, SHERRY_TILE_ROWS*sizeof(float));
        }
    }
    for (int b = 0; b < n_blocks; ++b, tile += tile_bytes) {
        const int met = ggml_sherry_met_block(b, n_planes);
        const int8_t * block_tables[TOKENS];
        const float  * block_d[TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            block_tables[t] = (const int8_t *) tables[t] + (size_t) met*TABLE_BYTES;
            block_d[t]      = d[t] + n_scales*met;
        }
        // as an integer, because a pointer must not leave its array
        for (size_t i = 0; prefetch && i < tile_bytes; i += 64) {
            __builtin_prefetch((const void *) ((uintptr_t) tile + PREFETCH_BLOCKS*tile_bytes + i));
        }
        if (n_tokens <= 2) {
            mul_rows(tile, n_scales, 0, 2, n_tokens, block_tables, block_d, rows);
        } else {
            mul_rows(tile, n_scales, 0,  1, n_tokens, block_tables, block_d, rows);
            mul_rows(tile, n_scales, 16, 1, n_tokens, block_tables, block_d, rows);
        }
    }
}

// One tile after the other, all its blocks: weights are read in the order they lie in. n_scales is a constant where this is
// inlined.
INLINE void mul_tiles(
        int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, const int n_scales, int n_tokens,
        const void * const * tables, const float * const * d, float * const * dst, bool first, bool prefetch) {
    for (int i = 0; i < n_tiles; ++i) {
        const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride;
        const size_t    row  = (size_t) i*SHERRY_TILE_ROWS;
        switch (n_tokens) {
            case 1: mul_tile(tile, n_blocks, n_planes, n_scales, 1, tables, d, dst, row, first, prefetch); break;
            case 2: mul_tile(tile, n_blocks, n_planes, n_scales, 2, tables, d, dst, row, first, prefetch); break;
            case 3: mul_tile(tile, n_blocks, n_planes, n_scales, 3, tables, d, dst, row, first, prefetch); break;
            case 4: mul_tile(tile, n_blocks, n_planes, n_scales, 4, tables, d, dst, row, first, prefetch); break;
        }
    }
}

static void mul_neon(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                     const void * const * tables, const float * const * d, float * const * dst, bool first,
                     bool prefetch) {
    mul_tiles(n_tiles, tile_stride, tiles, n_blocks, n_planes, 1, n_tokens, tables, d, dst, first, prefetch);
}

static void mul_g32_neon(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                         const void * const * tables, const float * const * d, float * const * dst, bool first,
                         bool prefetch) {
    mul_tiles(n_tiles, tile_stride, tiles, n_blocks, n_planes, SHERRY_G32_SCALES, n_tokens, tables, d, dst, first, prefetch);
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_neon = {
    .name        = "neon",
    .table_bytes = TABLE_BYTES,
    .max_tiles   = 4,
    .pack        = ggml_sherry_pack_bytes_neon,
    .unpack      = ggml_sherry_unpack_bytes,
    .pack_stq1_0 = ggml_sherry_pack_stq1_0_neon,
    .pack_g32    = ggml_sherry_pack_g32_neon,
    .tables      = tables_neon,
    .tables_g32  = tables_neon,
    .mul         = mul_neon,
    .mul_g32     = mul_g32_neon,
};

#endif
