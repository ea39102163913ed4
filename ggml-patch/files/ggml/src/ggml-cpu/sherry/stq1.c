#include "stq1.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <assert.h>

//
// generic: SHERRY's, of a block at a time
//

void ggml_stq1_isums_generic(int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy) {
    const block_stq1_0    * GGML_RESTRICT x = vx;
    const block_q8_sherry * GGML_RESTRICT y = vy;

    for (int i = 0; i < n/QK_STQ1_0; ++i) {
        block_sherry halves[2];
        ggml_stq1_to_sherry(x + i, halves);
        ggml_sherry_isums_generic(QK_STQ1_0, sums + 2*i, halves, y + 2*i);
    }
}

void ggml_vec_dot_stq1_0_q8_stq1_0_generic(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_STQ1_0 == 0);

    const block_stq1_0    * GGML_RESTRICT x = vx;
    const block_q8_sherry * GGML_RESTRICT y = vy;

    float sum = 0;
    for (int i = 0; i < n/QK_STQ1_0; ++i) {
        block_sherry halves[2];
        float part;
        ggml_stq1_to_sherry(x + i, halves);
        ggml_vec_dot_sherry_q8_sherry_generic(QK_STQ1_0, &part, bs, halves, bx, y + 2*i, by, nrc);
        sum += part;
    }
    *s = sum;
}

//
// dispatch
//

void quantize_row_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_stq1_0_ref(x, y, k);
}

void quantize_row_q8_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    quantize_row_q8_stq1_0_avx2(x, y, k);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    quantize_row_q8_stq1_0_neon(x, y, k);
#else
    quantize_row_q8_stq1_0_ref(x, y, k);
#endif
}

void ggml_vec_dot_stq1_0_q8_stq1_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    ggml_vec_dot_stq1_0_q8_stq1_0_avx2(n, s, bs, vx, bx, vy, by, nrc);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    ggml_vec_dot_stq1_0_q8_stq1_0_neon(n, s, bs, vx, bx, vy, by, nrc);
#else
    ggml_vec_dot_stq1_0_q8_stq1_0_generic(n, s, bs, vx, bx, vy, by, nrc);
#endif
}
