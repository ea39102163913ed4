#include "sherry.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <assert.h>

//
// generic
//

static inline int32_t block_isum(const block_sherry * x, const block_q8_sherry * y) {
    int8_t w[QK_SHERRY];
    ggml_sherry_decode(x, w);

    int32_t sum = 0;
    for (int p = 0; p < 4; ++p) {
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            sum += w[4*g + p]*y->qs[p*SHERRY_GROUPS + g];
        }
    }
    return sum;
}

void ggml_sherry_isums_generic(int n, int32_t * GGML_RESTRICT sums, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy) {
    const block_sherry    * GGML_RESTRICT x = vx;
    const block_q8_sherry * GGML_RESTRICT y = vy;

    for (int i = 0; i < n/QK_SHERRY; ++i) {
        sums[i] = block_isum(x + i, y + i);
    }
}

void ggml_vec_dot_sherry_q8_sherry_generic(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_SHERRY == 0);
    assert(nrc == 1);
    GGML_UNUSED(bs);
    GGML_UNUSED(bx);
    GGML_UNUSED(by);
    GGML_UNUSED(nrc);

    const block_sherry    * GGML_RESTRICT x = vx;
    const block_q8_sherry * GGML_RESTRICT y = vy;

    float sum = 0;
    for (int i = 0; i < n/QK_SHERRY; ++i) {
        const float d = GGML_FP16_TO_FP32((uint16_t) (x[i].d[0] | x[i].d[1] << 8));
        sum += d*y[i].d*(float) block_isum(x + i, y + i);
    }
    *s = sum;
}

//
// dispatch
//

void quantize_row_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_sherry_ref(x, y, k);
}

void quantize_row_q8_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    quantize_row_q8_sherry_avx2(x, y, k);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    quantize_row_q8_sherry_neon(x, y, k);
#else
    quantize_row_q8_sherry_ref(x, y, k);
#endif
}

void ggml_vec_dot_sherry_q8_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    ggml_vec_dot_sherry_q8_sherry_avx2(n, s, bs, vx, bx, vy, by, nrc);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    ggml_vec_dot_sherry_q8_sherry_neon(n, s, bs, vx, bx, vy, by, nrc);
#else
    ggml_vec_dot_sherry_q8_sherry_generic(n, s, bs, vx, bx, vy, by, nrc);
#endif
}
