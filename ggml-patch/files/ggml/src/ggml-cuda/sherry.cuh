#pragma once

// SHERRY, SHERRY_G32, SHERRY_2P and STQ1_0: dequantization, and products with the activations of Q8_1 by dp4a. The blocks
// are bytes without alignment; those of an even size begin at even addresses, so that they are read 16 bits at a time.

#include "../ggml-sherry-2p.h"
#include "../ggml-sherry-g32.h"
#include "../ggml-sherry.h"
#include "../ggml-stq1.h"
#include "vecdotq.cuh"

// Products of 32 weights (64 for STQ1_0) in a block: what iqs of vec_dot counts, and its step.
#define QI_SHERRY     (QK_SHERRY/32)
#define QI_SHERRY_G32 (QK_SHERRY_G32/32)
#define QI_SHERRY_2P  (QK_SHERRY/32)
#define QI_STQ1_0     (QK_STQ1_0/32)
#define VDR_STQ1_0_Q8_1_MMVQ 2

// Of one token, on NVIDIA: threads take 32 weights of each of four rows, whose activations they load once, and two warps suffice.
#define SHERRY_MMVQ_WARPS 2
#define SHERRY_MMVQ_ROWS  4

static constexpr __host__ __device__ bool is_sherry(const ggml_type type) {
    return type == GGML_TYPE_SHERRY || type == GGML_TYPE_SHERRY_G32 || type == GGML_TYPE_SHERRY_2P || type == GGML_TYPE_STQ1_0;
}

// Those that mul_mat_q multiplies, by tiles of bytes with a scale for 32 weights (sherry-mmq.cuh), in which a tile of Q8_0 is
// laid out. A weight of SHERRY_2P has two scales.
static constexpr __host__ __device__ bool sherry_has_tiles(const ggml_type type) {
    return is_sherry(type) && type != GGML_TYPE_SHERRY_2P;
}

// The four weights of a group, each -1, 0 or 1 in a byte. Bits of index: 3 and 2 are the position of the zero, 1 and 0 say
// whether the third and the second of the other weights differ in sign from the first; bit 0 of sign is the first one's.
static __device__ __forceinline__ int sherry_bytes(const uint32_t index, const uint32_t sign) {
    // a byte for each of the three that are not zero, in order: its lowest bit is the sign
    const uint32_t signs = ((index & 1) << 8 | (index & 2) << 15) ^ ((0u - (sign & 1)) & 0x010101u);
    const uint32_t three = 0x010101u + (signs << 8) - (signs << 1);
    // those before the zero stay, those after it move up by a byte
    const uint32_t before = (1u << (8*(index >> 2 & 3))) - 1;
    return (int) ((three & before) | (three & ~before) << 8);
}

static __device__ __forceinline__ uint32_t sherry_load16(const uint8_t * at) {
    return *(const uint16_t *) at;
}

// Products look the bytes up: a load from shared memory instead of twelve operations. The codes of the 32 lanes of a warp are
// any, and each pattern has a bank of its own, so that no two lanes meet in one.
static __device__ __forceinline__ uint32_t * sherry_patterns() {
    static __shared__ uint32_t patterns[32];
    return patterns;
}

// A kernel's first statement, of all its threads.
static __device__ __forceinline__ void sherry_fill_patterns(const int thread) {
    if (thread < 32) {
        sherry_patterns()[thread] = sherry_bytes(thread, thread >> 4);
    }
    __syncthreads();
}

// Where four groups lie in that table, in bytes from its begin, a byte each. Indices are the low nibbles of their bytes, signs
// the low four bits; what is above them is ignored.
static __device__ __forceinline__ uint32_t sherry_places(const uint32_t indices, const uint32_t signs) {
    return (indices << 2 & 0x3C3C3C3C) | ((signs & 0xF)*0x08102040 & 0x40404040);
}

// Group k of those.
static __device__ __forceinline__ int sherry_look_up(const uint32_t places, const int k) {
    return *(const int *) ((const char *) sherry_patterns() + __byte_perm(places, 0, 0x4440 + k));
}

static __device__ __forceinline__ float sherry_scale(const uint8_t d[2]) {
    const uint16_t bits = (uint16_t) (d[0] | d[1] << 8);
    half scale;
    memcpy(&scale, &bits, sizeof(scale));
    return __half2float(scale);
}

// Groups of a block.

static __device__ __forceinline__ int sherry_group(const block_sherry * x, const int g) {
    return sherry_bytes(x->qs[g%16] >> g/16*4, x->signs[g/8] >> g%8);
}

static __device__ __forceinline__ int sherry_group(const block_sherry_g32 * x, const int g) {
    return sherry_bytes(x->qs[g%4] >> g/4*4, x->signs >> g);
}

static __device__ __forceinline__ int sherry_group(const block_stq1_0 * x, const int g) {
    return sherry_bytes(x->qs[g/2] >> g%2*4, x->sign[g/8] >> g%8);
}

static __device__ __forceinline__ float sherry_weight(const int group, const int p) {
    return (int8_t) (group >> 8*p);
}

// Two weights from an even one on.

static __device__ __forceinline__ void dequantize_sherry(const void * vx, const int64_t ib, const int iqs, float2 & v) {
    const block_sherry * x = (const block_sherry *) vx + ib;
    const float d     = sherry_scale(x->d);
    const int   group = sherry_group(x, iqs/4);
    v.x = d*sherry_weight(group, iqs%4);
    v.y = d*sherry_weight(group, iqs%4 + 1);
}

static __device__ __forceinline__ void dequantize_sherry_g32(const void * vx, const int64_t ib, const int iqs, float2 & v) {
    const block_sherry_g32 * x = (const block_sherry_g32 *) vx + ib;
    const float d     = sherry_scale(x->d);
    const int   group = sherry_group(x, iqs/4);
    v.x = d*sherry_weight(group, iqs%4);
    v.y = d*sherry_weight(group, iqs%4 + 1);
}

static __device__ __forceinline__ void dequantize_sherry_2p(const void * vx, const int64_t ib, const int iqs, float2 & v) {
    float2 other;
    dequantize_sherry(vx, 2*ib,     iqs, v);
    dequantize_sherry(vx, 2*ib + 1, iqs, other);
    v.x += other.x;
    v.y += other.y;
}

// Neighbours are of two groups: lane e%64/16 of each.
static __device__ __forceinline__ void dequantize_stq1_0(const void * vx, const int64_t ib, const int iqs, float2 & v) {
    const block_stq1_0 * x = (const block_stq1_0 *) vx + ib;
    const float d    = sherry_scale(x->d);
    const int   g    = iqs/64*16 + iqs%16;
    const int   lane = iqs%64/16;
    v.x = d*sherry_weight(sherry_group(x, g),     lane);
    v.y = d*sherry_weight(sherry_group(x, g + 1), lane);
}

// Products: of the 32 weights from 32*iqs on, or of the 64 that STQ1_0's sixteen groups are.

static __device__ __forceinline__ int sherry_dot(const block_sherry * x, const block_q8_1 * y, const int iqs) {
    const uint8_t * qs    = x->qs + iqs%2*8;
    const uint32_t  signs = x->signs[iqs];
    const int       shift = iqs/2*4; // to the nibbles of its half

    int sum = 0;
#pragma unroll
    for (int g = 0; g < 8; g += 4) {
        const uint32_t indices = sherry_load16(qs + g) | sherry_load16(qs + g + 2) << 16;
        const uint32_t places  = sherry_places(indices >> shift, signs >> g);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            sum = ggml_cuda_dp4a(sherry_look_up(places, k), get_int_b4(y[iqs].qs, g + k), sum);
        }
    }
    return sum;
}

static __device__ __forceinline__ float vec_dot_sherry_q8_1(
    const void * __restrict__ vbq, const block_q8_1 * __restrict__ bq8_1, const int & kbx, const int & iqs) {
    const block_sherry * x = (const block_sherry *) vbq + kbx;
    return sherry_scale(x->d) * __low2float(bq8_1[iqs].ds) * sherry_dot(x, bq8_1, iqs);
}

static __device__ __forceinline__ float vec_dot_sherry_2p_q8_1(
    const void * __restrict__ vbq, const block_q8_1 * __restrict__ bq8_1, const int & kbx, const int & iqs) {
    const block_sherry * x = ((const block_sherry_2p *) vbq + kbx)->plane;
    return __low2float(bq8_1[iqs].ds) *
        (sherry_scale(x[0].d)*sherry_dot(&x[0], bq8_1, iqs) + sherry_scale(x[1].d)*sherry_dot(&x[1], bq8_1, iqs));
}

static __device__ __forceinline__ float vec_dot_sherry_g32_q8_1(
    const void * __restrict__ vbq, const block_q8_1 * __restrict__ bq8_1, const int & kbx, const int & iqs) {
    const block_sherry_g32 * x = (const block_sherry_g32 *) vbq + kbx;

    const uint32_t indices = x->qs[0] | x->qs[1] << 8 | x->qs[2] << 16 | (uint32_t) x->qs[3] << 24;
    const uint32_t places[2] = { sherry_places(indices, x->signs), sherry_places(indices >> 4, x->signs >> 4) };

    int sum = 0;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
        sum = ggml_cuda_dp4a(sherry_look_up(places[g/4], g%4), get_int_b4(bq8_1[iqs].qs, g), sum);
    }
    return sherry_scale(x->d) * __low2float(bq8_1[iqs].ds) * sum;
}

static __device__ __forceinline__ float vec_dot_stq1_0_q8_1(
    const void * __restrict__ vbq, const block_q8_1 * __restrict__ bq8_1, const int & kbx, const int & iqs) {
    const block_stq1_0 * x = (const block_stq1_0 *) vbq + kbx;

    int sums[2] = { 0, 0 }; // of lanes 0 and 1, of lanes 2 and 3: blocks of activations
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
        const int      first   = iqs*8 + 4*quad; // group
        const uint32_t nibbles = sherry_load16(x->qs + first/2);
        const uint32_t pairs   = (nibbles | nibbles << 8) & 0x00FF00FF;
        const uint32_t indices = (pairs   | pairs   << 4) & 0x0F0F0F0F;
        const uint32_t places  = sherry_places(indices, x->sign[first/8] >> first%8);
        int groups[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            groups[k] = sherry_look_up(places, k);
        }
        // transposed, a register is one lane of the four groups, whose activations are neighbours
        const int low01  = __byte_perm(groups[0], groups[1], 0x5140), low23  = __byte_perm(groups[2], groups[3], 0x5140);
        const int high01 = __byte_perm(groups[0], groups[1], 0x7362), high23 = __byte_perm(groups[2], groups[3], 0x7362);
        sums[0] = ggml_cuda_dp4a(__byte_perm(low01,  low23,  0x5410), get_int_b4(bq8_1[iqs].qs,     quad),     sums[0]);
        sums[0] = ggml_cuda_dp4a(__byte_perm(low01,  low23,  0x7632), get_int_b4(bq8_1[iqs].qs,     quad + 4), sums[0]);
        sums[1] = ggml_cuda_dp4a(__byte_perm(high01, high23, 0x5410), get_int_b4(bq8_1[iqs + 1].qs, quad),     sums[1]);
        sums[1] = ggml_cuda_dp4a(__byte_perm(high01, high23, 0x7632), get_int_b4(bq8_1[iqs + 1].qs, quad + 4), sums[1]);
    }
    return sherry_scale(x->d) *
        (__low2float(bq8_1[iqs].ds)*sums[0] + __low2float(bq8_1[iqs + 1].ds)*sums[1]);
}

template<>
struct ggml_cuda_type_traits<GGML_TYPE_STQ1_0> {
    static constexpr int qk = QK_STQ1_0;
    static constexpr int qr = 1;
    static constexpr int qi = QI_STQ1_0;
    static constexpr int bs = sizeof(block_stq1_0);
};

template<>
struct ggml_cuda_type_traits<GGML_TYPE_SHERRY> {
    static constexpr int qk = QK_SHERRY;
    static constexpr int qr = 1;
    static constexpr int qi = QI_SHERRY;
    static constexpr int bs = sizeof(block_sherry);
};

template<>
struct ggml_cuda_type_traits<GGML_TYPE_SHERRY_G32> {
    static constexpr int qk = QK_SHERRY_G32;
    static constexpr int qr = 1;
    static constexpr int qi = QI_SHERRY_G32;
    static constexpr int bs = sizeof(block_sherry_g32);
};

template<>
struct ggml_cuda_type_traits<GGML_TYPE_SHERRY_2P> {
    static constexpr int qk = QK_SHERRY;
    static constexpr int qr = 1;
    static constexpr int qi = QI_SHERRY_2P;
    static constexpr int bs = sizeof(block_sherry_2p);
};
