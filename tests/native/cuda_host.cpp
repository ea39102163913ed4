// ggml-cuda/sherry.cuh for the processor.

#include "cuda_shims.h"

struct block_q8_1 { half2 ds; int8_t qs[32]; };

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
