#include "row.h"

#include "ggml-impl.h"
#include "isa.h"

#include <assert.h>
#include <math.h>
#include <string.h>

//
// generic
//

// The reference quantizers are in another library, so not everywhere is their address a constant for a table.
static void quantize_for_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_q8_sherry_ref(x, y, k);
}

static void quantize_for_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_q8_stq1_0_ref(x, y, k);
}

static void quantize_for_g32(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_q8_sherry_g32_ref(x, y, k);
}

static int32_t block_isum(const block_sherry * x, const block_q8_sherry * y) {
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

static void isums_sherry(int n, int32_t * sums, const void * vx, const void * vy) {
    const block_sherry    * x = vx;
    const block_q8_sherry * y = vy;

    for (int i = 0; i < n/QK_SHERRY; ++i) {
        sums[i] = block_isum(x + i, y + i);
    }
}

// n_planes blocks of x, one after the other, meet the same block of y
static float dot_planes(float sum, int n, int n_planes, const block_sherry * x, const block_q8_sherry * y) {
    for (int i = 0; i < n_planes*n/QK_SHERRY; ++i) {
        const float d = GGML_FP16_TO_FP32((uint16_t) (x[i].d[0] | x[i].d[1] << 8));
        sum = fmaf((float) block_isum(x + i, y + i/n_planes), d*y[i/n_planes].d, sum);
    }
    return sum;
}

static float dot_sherry(float sum, int n, const block_sherry * x, const block_q8_sherry * y) {
    return dot_planes(sum, n, 1, x, y);
}

static void vec_dot_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_SHERRY == 0);
    SHERRY_ONE_ROW(bs, bx, by, nrc);

    *s = dot_sherry(0, n, vx, vy);
}

// STQ1_0: as SHERRY, a block at a time

static void isums_stq1_0(int n, int32_t * sums, const void * vx, const void * vy) {
    const block_stq1_0    * x = vx;
    const block_q8_sherry * y = vy;

    for (int i = 0; i < n/QK_STQ1_0; ++i) {
        block_sherry halves[2];
        ggml_stq1_to_sherry(x + i, halves);
        isums_sherry(QK_STQ1_0, sums + 2*i, halves, y + 2*i);
    }
}

static void vec_dot_stq1_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_STQ1_0 == 0);
    SHERRY_ONE_ROW(bs, bx, by, nrc);

    const block_stq1_0    * GGML_RESTRICT x = vx;
    const block_q8_sherry * GGML_RESTRICT y = vy;

    float sum = 0;
    for (int i = 0; i < n/QK_STQ1_0; ++i) {
        block_sherry halves[2];
        ggml_stq1_to_sherry(x + i, halves);
        sum = dot_sherry(sum, QK_STQ1_0, halves, y + 2*i);
    }
    *s = sum;
}

// SHERRY_2P

static void isums_two(int n, int32_t * sums, const void * vx, const void * vy) {
    const block_sherry    * x = vx;
    const block_q8_sherry * y = vy;

    for (int i = 0; i < SHERRY_2P_PLANES*n/QK_SHERRY; ++i) {
        sums[i] = block_isum(x + i, y + i/SHERRY_2P_PLANES);
    }
}

static void vec_dot_two(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_SHERRY_2P == 0);
    SHERRY_ONE_ROW(bs, bx, by, nrc);

    *s = dot_planes(0, n, SHERRY_2P_PLANES, vx, vy);
}

// SHERRY_G32

void ggml_sherry_isums_g32(int n, int32_t * sums, const void * vx, const void * vy) {
    const block_sherry_g32    * x = vx;
    const block_q8_sherry_g32 * y = vy;

    for (int i = 0; i < n/QK_SHERRY_G32; ++i) {
        int8_t w[QK_SHERRY_G32];
        ggml_sherry_g32_decode(x + i, w);
        sums[i] = 0;
        for (int j = 0; j < QK_SHERRY_G32; ++j) {
            sums[i] += w[j]*y[i].qs[j%4*SHERRY_G32_GROUPS + j/4];
        }
    }
}

void ggml_sherry_vec_dot_g32(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    assert(n % QK_SHERRY_G32 == 0);
    SHERRY_ONE_ROW(bs, bx, by, nrc);

    const block_sherry_g32    * GGML_RESTRICT x = vx;
    const block_q8_sherry_g32 * GGML_RESTRICT y = vy;

    float sum = 0;
    for (int i = 0; i < n/QK_SHERRY_G32; ++i) {
        int32_t isum;
        ggml_sherry_isums_g32(QK_SHERRY_G32, &isum, x + i, y + i);
        sum = fmaf((float) isum, GGML_FP16_TO_FP32((uint16_t) (x[i].d[0] | x[i].d[1] << 8))*y[i].d, sum);
    }
    *s = sum;
}

const struct ggml_sherry_row_kernel ggml_sherry_row_generic = {
    .name   = "generic",
    .sherry = { quantize_for_sherry, isums_sherry, vec_dot_sherry },
    .stq1_0 = { quantize_for_stq1_0, isums_stq1_0, vec_dot_stq1_0 },
    .g32    = { quantize_for_g32, ggml_sherry_isums_g32, ggml_sherry_vec_dot_g32 },
    .two    = { quantize_for_sherry, isums_two, vec_dot_two },
};

//
// dispatch: the fastest first
//

static const struct ggml_sherry_row_kernel * const kernels[] = {
#if defined(SHERRY_ISA_AVX2)
    &ggml_sherry_row_avx2,
#endif
#if defined(SHERRY_ISA_NEON)
    &ggml_sherry_row_neon,
#endif
    &ggml_sherry_row_generic,
};

const struct ggml_sherry_row_kernel * ggml_sherry_best_row_kernel(void) {
    return kernels[0];
}

const struct ggml_sherry_row_kernel * ggml_sherry_row_kernel_named(const char * name) {
    for (size_t i = 0; i < sizeof(kernels)/sizeof(kernels[0]); ++i) {
        if (strcmp(kernels[i]->name, name) == 0) {
            return kernels[i];
        }
    }
    return NULL;
}

//
// ggml's CPU traits: the best kernel is known when this is compiled, so each call is a jump
//

void quantize_row_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_sherry_ref(x, y, k);
}

void quantize_row_q8_sherry(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    kernels[0]->sherry.quantize(x, y, k);
}

void ggml_vec_dot_sherry_q8_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    kernels[0]->sherry.vec_dot(n, s, bs, vx, bx, vy, by, nrc);
}

void quantize_row_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_stq1_0_ref(x, y, k);
}

void quantize_row_q8_stq1_0(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    kernels[0]->stq1_0.quantize(x, y, k);
}

void ggml_vec_dot_stq1_0_q8_stq1_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    kernels[0]->stq1_0.vec_dot(n, s, bs, vx, bx, vy, by, nrc);
}

void quantize_row_sherry_g32(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_sherry_g32_ref(x, y, k);
}

void quantize_row_q8_sherry_g32(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    kernels[0]->g32.quantize(x, y, k);
}

void ggml_vec_dot_sherry_g32_q8_sherry_g32(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    kernels[0]->g32.vec_dot(n, s, bs, vx, bx, vy, by, nrc);
}

void quantize_row_sherry_2p(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    quantize_row_sherry_2p_ref(x, y, k);
}

void ggml_vec_dot_sherry_2p_q8_sherry(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {
    kernels[0]->two.vec_dot(n, s, bs, vx, bx, vy, by, nrc);
}
