// ggml-cuda/sherry.cuh for the processor: what CUDA and ggml-cuda have beside it is here, by their documentation, in plain C++.

#include "ggml.h"

#include <cstdint>
#include <cstring>

#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline

struct float2 { float x, y; };
struct half { ggml_fp16_t bits; };
struct half2 { half low, high; };
struct block_q8_1 { half2 ds; int8_t qs[32]; };

static float __half2float(half h) { return ggml_fp16_to_fp32(h.bits); }
static float __low2float(half2 h) { return __half2float(h.low); }

static int get_int_b4(const void * x, int i) {
    int value;
    memcpy(&value, (const char *) x + 4*i, 4);
    return value;
}

static int ggml_cuda_dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) {
        c += (int8_t) (a >> 8*i) * (int8_t) (b >> 8*i);
    }
    return c;
}

// byte i of the result is the one of b:a that nibble i of the selector numbers
static int __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = (uint64_t) b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= (uint32_t) (both >> 8*(selector >> 4*i & 7) & 0xFF) << 8*i;
    }
    return (int) result;
}

static void __syncthreads() {}

template <ggml_type type> struct ggml_cuda_type_traits;

#include "ggml-cuda/sherry.cuh"

// What the threads of a kernel do at its begin.
static const bool filled = [] {
    for (int thread = 0; thread < 64; ++thread) {
        sherry_fill_patterns(thread);
    }
    return true;
}();

// Rows as get_rows.cu dequantizes them, and their products as mmvq.cu adds them up, in another order.
#define HOST(name, type, step)                                                                         \
    extern "C" void host_dequantize_##name(const void * x, float * y, int64_t k) {                     \
        const int qk = ggml_cuda_type_traits<type>::qk;                                                \
        for (int64_t i = 0; i < k; i += 2) {                                                           \
            float2 v;                                                                                  \
            dequantize_##name(x, i/qk, i%qk, v);                                                       \
            y[i]     = v.x;                                                                            \
            y[i + 1] = v.y;                                                                            \
        }                                                                                              \
    }                                                                                                  \
    extern "C" float host_dot_##name(const void * x, const block_q8_1 * y, int64_t k) {                \
        const int qk = ggml_cuda_type_traits<type>::qk;                                                \
        float sum = 0;                                                                                 \
        for (int block = 0; block < k/qk; ++block) {                                                   \
            for (int iqs = 0; iqs < ggml_cuda_type_traits<type>::qi; iqs += step) {                    \
                sum += vec_dot_##name##_q8_1(x, y + block*(qk/32), block, iqs);                        \
            }                                                                                          \
        }                                                                                              \
        return sum;                                                                                    \
    }

HOST(sherry,     GGML_TYPE_SHERRY,     1)
HOST(sherry_g32, GGML_TYPE_SHERRY_G32, 1)
HOST(sherry_2p,  GGML_TYPE_SHERRY_2P,  1)
HOST(stq1_0,     GGML_TYPE_STQ1_0,     VDR_STQ1_0_Q8_1_MMVQ)
