#include "isa.h"
#include "row.h"

#if defined(SHERRY_ISA_NEON)

#include <arm_neon.h>
#include <math.h>
#include <string.h>

// vec_dot of one row, SHERRY x Q8_SHERRY, NEON: one block of 128 weights at a time. STQ1_0 x Q8_STQ1_0: half a block.
//
// Byte g of two 128-bit registers belongs to group g: groups 0..15 are the low nibbles of qs, 16..31 the high ones. As
// with AVX2, plane p of the weights (the p-th weight of 16 groups) is one look-up with an index of four bits: with s2,
// s3 the signs of second and third themselves, not relative to first, planes 2 and 3 depend on (zero_pos, s3, s2),
// planes 0 and 1 on (zero_pos, sign, s2). What is looked up is -1, 0, 1, so the sum of activations is not needed.
//
// A look-up of all five bits in a table of two registers would take less before and more inside: compilers copy such
// pairs of registers, and older cores take twice as long for one.
//
// With dotprod the products of four bytes add up in 32 bits. Without it two multiplications, of the low and the high
// half of a register, add up in 16 bits: a lane gets 16 products, 16*127 = 2032 at most.

typedef int32x4_t isums;

typedef struct {
    int8x16_t w[4]; // weight p of 16 groups
} planes_t;

// zero_pos:                               0             1               2               3
static const int8_t table0[16] = { 0,  0,  0,  0, 1,  1, -1, -1, 1,  1, -1, -1, 1,  1, -1, -1 }; // first
static const int8_t table1[16] = { 1,  1, -1, -1, 0,  0,  0,  0, 1, -1,  1, -1, 1, -1,  1, -1 }; // first or second
static const int8_t table2[16] = { 1, -1,  1, -1, 1, -1,  1, -1, 0,  0,  0,  0, 1,  1, -1, -1 }; // second or third
static const int8_t table3[16] = { 1,  1, -1, -1, 1,  1, -1, -1, 1,  1, -1, -1, 0,  0,  0,  0 }; // third

// sign: 0 or 255
static inline planes_t decode(uint8x16_t index, uint8x16_t sign) {
    const uint8x16_t i23 = veorq_u8(index, vandq_u8(sign, vdupq_n_u8(3))); // zero_pos << 2 | s3 << 1 | s2
    const uint8x16_t i01 = vbslq_u8(vdupq_n_u8(2), sign, i23);             // zero_pos << 2 | sign << 1 | s2
    const planes_t planes = { {
        vqtbl1q_s8(vld1q_s8(table0), i01),
        vqtbl1q_s8(vld1q_s8(table1), i01),
        vqtbl1q_s8(vld1q_s8(table2), i23),
        vqtbl1q_s8(vld1q_s8(table3), i23),
    } };
    return planes;
}

// where the signs of the groups are that the low and the high nibbles belong to
typedef struct {
    uint8x16_t lo_byte, hi_byte;
    uint8x16_t lo_bit,  hi_bit;
} signs_at;

static inline signs_at sherry_signs(void) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const signs_at at = {
        vcombine_u8(vdup_n_u8(0), vdup_n_u8(1)), vcombine_u8(vdup_n_u8(2), vdup_n_u8(3)), bit, bit,
    };
    return at;
}

// the low nibbles are the even groups, the high ones the odd groups
static inline signs_at stq1_0_signs(void) {
    const uint8x16_t byte = vcombine_u8(vcreate_u8(0x0101010100000000), vcreate_u8(0x0303030302020202));
    const signs_at at = {
        byte, byte, vreinterpretq_u8_u32(vdupq_n_u32(0x40100401)), vreinterpretq_u8_u32(vdupq_n_u32(0x80200802)),
    };
    return at;
}

// four parts of the sum over the block of weight*y.qs
static inline isums isum(const uint8_t * codes, const uint8_t * four_signs, signs_at at, const block_q8_sherry * y) {
    uint32_t four;
    memcpy(&four, four_signs, sizeof(four));
    const uint8x16_t signs = vreinterpretq_u8_u32(vdupq_n_u32(four));
    const uint8x16_t qs    = vld1q_u8(codes);
    const planes_t lo = decode(vandq_u8(qs, vdupq_n_u8(0xF)), vtstq_u8(vqtbl1q_u8(signs, at.lo_byte), at.lo_bit));
    const planes_t hi = decode(vshrq_n_u8(qs, 4),             vtstq_u8(vqtbl1q_u8(signs, at.hi_byte), at.hi_bit));

#if defined(SHERRY_ISA_DOTPROD)
    int32x4_t sum0 = vdupq_n_s32(0), sum1 = vdupq_n_s32(0);
    for (int p = 0; p < 4; ++p) {
        sum0 = vdotq_s32(sum0, lo.w[p], vld1q_s8(y->qs + p*SHERRY_GROUPS));
        sum1 = vdotq_s32(sum1, hi.w[p], vld1q_s8(y->qs + p*SHERRY_GROUPS + 16));
    }
    return vaddq_s32(sum0, sum1);
#else
    int16x8_t sum0 = vdupq_n_s16(0), sum1 = vdupq_n_s16(0);
    for (int p = 0; p < 4; ++p) {
        const int8x16_t y_lo = vld1q_s8(y->qs + p*SHERRY_GROUPS);
        const int8x16_t y_hi = vld1q_s8(y->qs + p*SHERRY_GROUPS + 16);
        sum0 = vmlal_s8(sum0, vget_low_s8(lo.w[p]), vget_low_s8(y_lo));
        sum1 = vmlal_high_s8(sum1, lo.w[p], y_lo);
        sum0 = vmlal_s8(sum0, vget_low_s8(hi.w[p]), vget_low_s8(y_hi));
        sum1 = vmlal_high_s8(sum1, hi.w[p], y_hi);
    }
    return vpaddlq_s16(vaddq_s16(sum0, sum1)); // 2*2032 fits as well
#endif
}

static inline int32_t reduce_isum(isums v) {
    return vaddvq_s32(v);
}

static inline float add_scaled(float sum, int32_t isum, const uint8_t * d, const block_q8_sherry * y) {
    uint16_t bits;
    memcpy(&bits, d, sizeof(bits));
    const float scale = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
    return fmaf((float) isum, scale*y->d, sum);
}

#define PREFETCH(x) GGML_UNUSED(x) // no ARM machine has timed it

// 16 groups of one plane; |q| <= 127, so that narrowing loses nothing
static inline int8x16_t narrow(const int32x4_t q[4]) {
    const int16x8_t lo = vmovn_high_s32(vmovn_s32(q[0]), q[1]);
    const int16x8_t hi = vmovn_high_s32(vmovn_s32(q[2]), q[3]);
    return vmovn_high_s16(vmovn_s16(lo), hi);
}

// planes of groups of four consecutive activations
static inline int32_t sherry_planes(const float * x, float id, int8_t * planes) {
    int32_t sum = 0;
    for (int half = 0; half < 2; ++half) { // 16 groups
        int32x4_t q[4][4]; // q[p][j]: plane p of groups 4*j..4*j+3
        for (int j = 0; j < 4; ++j) {
            const float32x4x4_t four = vld4q_f32(x + 64*half + 16*j);
            for (int p = 0; p < 4; ++p) {
                q[p][j] = vcvtnq_s32_f32(vmulq_n_f32(four.val[p], id)); // to nearest even
            }
        }
        for (int p = 0; p < 4; ++p) {
            const int8x16_t qs = narrow(q[p]);
            vst1q_s8(planes + p*SHERRY_GROUPS + 16*half, qs);
            sum += vaddlvq_s8(qs);
        }
    }
    return sum;
}

static inline void g32_planes(const float * x, float id, int8_t * planes) {
    int32x4_t q[4][2]; // q[p][j]: plane p of groups 4*j..4*j+3
    for (int j = 0; j < 2; ++j) {
        const float32x4x4_t four = vld4q_f32(x + 16*j);
        for (int p = 0; p < 4; ++p) {
            q[p][j] = vcvtnq_s32_f32(vmulq_n_f32(four.val[p], id));
        }
    }
    for (int p = 0; p < 4; ++p) {
        vst1_s8(planes + 8*p, vmovn_s16(vmovn_high_s32(vmovn_s32(q[p][0]), q[p][1])));
    }
}

// planes of groups whose activations lie 16 apart, the even groups first
static inline int32_t stq1_0_planes(const float * x, float id, int8_t * planes) {
    int32_t sum = 0;
    for (int p = 0; p < 4; ++p) {
        int8x16_t qs[2]; // groups 0..15, 16..31
        for (int half = 0; half < 2; ++half) {
            int32x4_t q[4];
            for (int j = 0; j < 4; ++j) {
                q[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 64*half + 16*p + 4*j), id));
            }
            qs[half] = narrow(q);
            sum += vaddlvq_s8(qs[half]);
        }
        vst1q_s8(planes + p*SHERRY_GROUPS,      vuzp1q_s8(qs[0], qs[1]));
        vst1q_s8(planes + p*SHERRY_GROUPS + 16, vuzp2q_s8(qs[0], qs[1]));
    }
    return sum;
}

INLINE float largest(const float * x, const int n) {
    // as integers, magnitudes are in the order of the floats, with infinity and NaN above all of them
    uint32x4_t max = vdupq_n_u32(0);
    for (int j = 0; j < n; j += 4) {
        max = vmaxq_u32(max, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + j)), vdupq_n_u32(0x7FFFFFFF)));
    }
    const uint32_t bits = vmaxvq_u32(max);
    float amax;
    memcpy(&amax, &bits, sizeof(amax));
    return amax;
}

#include "row-simd.h"

ROW_KERNEL(neon)

#endif
