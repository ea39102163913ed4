#include "ggml-sherry.h"
#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static uint16_t get_d(const block_sherry * x) {
    return (uint16_t) (x->d[0] | x->d[1] << 8);
}

static void set_d(block_sherry * x, uint16_t d) {
    x->d[0] = d & 0xFF;
    x->d[1] = d >> 8;
}

//
// quantization: a run of n weights, in groups of 4, shares a scale
//

#define MAX_RUN_GROUPS (2*SHERRY_GROUPS)

static double magnitude(float w) {
    return (double) fabsf(w);
}

// The weight of smallest magnitude is zeroed, the first of several.
static int zero_position(const float * w) {
    int zero = 0;
    for (int p = 1; p < 4; ++p) {
        if (fabsf(w[p]) < fabsf(w[zero])) {
            zero = p;
        }
    }
    return zero;
}

static void zero_positions(const float * w, int n, uint8_t * zero) {
    for (int g = 0; g < n/4; ++g) {
        zero[g] = (uint8_t) zero_position(w + 4*g);
    }
}

// alpha of the published trainer: the mean magnitude of the kept weights.
static float mean_kept(const float * w, int n, const uint8_t * zero) {
    double sum = 0;
    for (int i = 0; i < n; ++i) {
        if (i%4 != zero[i/4]) {
            sum += magnitude(w[i]);
        }
    }
    return (float) (sum/(3*(n/4)));
}

// A weight of 0 that is kept counts as positive. A scale that rounds to 0 makes the block all zero bytes.
static void encode(const float * w, int n_groups, const uint8_t * zero, uint16_t d, block_sherry * y) {
    memset(y, 0, sizeof(*y));
    if (d == 0) {
        return;
    }
    for (int g = 0; g < n_groups; ++g) {
        int negative[3];
        for (int p = 0, n = 0; p < 4; ++p) {
            if (p != zero[g]) {
                negative[n++] = w[4*g + p] < 0;
            }
        }
        const int index = zero[g] << 2 | (negative[0] ^ negative[2]) << 1 | (negative[0] ^ negative[1]);

        y->qs[g%16]   |= (uint8_t) (index << (g < 16 ? 0 : 4));
        y->signs[g/8] |= (uint8_t) (negative[0] << g%8);
    }
    set_d(y, d);
}

static bool is_finite(const float * w, int n) {
    double sum = 0; // of floats: only a weight that is not finite makes it so
    for (int i = 0; i < n; ++i) {
        sum += magnitude(w[i]);
    }
    return isfinite(sum);
}

// Every group has one zero, and all other weights the same magnitude.
static bool is_on_grid(const float * w, int n, const uint8_t * zero) {
    const float a = fabsf(w[zero[0] == 0]);
    for (int i = 0; i < n; ++i) {
        if (fabsf(w[i]) != (i%4 == zero[i/4] ? 0.0f : a)) {
            return false;
        }
    }
    return a > 0;
}

// The zero that costs least under importance m and scale d: keeping weight w instead of zeroing it lowers the error by
// m*(w^2 - (|w| - d)^2) = m*d*(2*|w| - d). Among equals, so also where m is all zero, the trainer's rule decides.
static int weighted_zero_position(const float * w, const float * m, double d) {
    int zero = 0;
    double least = HUGE_VAL;
    for (int p = 0; p < 4; ++p) {
        const double gain = (double) m[p]*(2*magnitude(w[p]) - d);
        if (gain < least || (gain == least && fabsf(w[p]) < fabsf(w[zero]))) {
            least = gain;
            zero  = p;
        }
    }
    return zero;
}

// Minimizes sum(m*(w - d*q)^2): the best zeros for a scale, the best scale for these zeros, until no zero moves. Neither
// step raises the error, so this ends; the bound is for rounding. `zero` holds the start. Returns the scale.
static float fit(const float * w, const float * m, int n, float d, uint8_t * zero) {
    for (int iter = 0; iter < 16; ++iter) {
        double sum_mw = 0;
        double sum_m  = 0;
        for (int i = 0; i < n; ++i) {
            if (i%4 != zero[i/4]) {
                sum_mw += (double) m[i]*magnitude(w[i]);
                sum_m  += (double) m[i];
            }
        }
        if (sum_m > 0) {
            d = (float) (sum_mw/sum_m);
        }
        bool moved = false;
        for (int g = 0; g < n/4; ++g) {
            const uint8_t best = (uint8_t) weighted_zero_position(w + 4*g, m + 4*g, (double) d);
            moved |= best != zero[g];
            zero[g] = best;
        }
        if (!moved) {
            break;
        }
    }
    return d;
}

// importance: of each weight, or NULL
void ggml_sherry_quantize_run(const float * w, const float * importance, int n, block_sherry * y) {
    if (!is_finite(w, n)) {
        for (int i = 0; i < n; i += QK_SHERRY, ++y) {
            memset(y, 0, sizeof(*y));
            set_d(y, 0x7E00); // NaN: validation rejects the block, and so does a reader
        }
        return;
    }
    uint8_t zero[MAX_RUN_GROUPS];
    zero_positions(w, n, zero);
    uint16_t d = GGML_FP32_TO_FP16(mean_kept(w, n, zero));
    if (importance && !is_on_grid(w, n, zero)) {
        uint8_t fitted_zero[MAX_RUN_GROUPS];
        memcpy(fitted_zero, zero, n/4);
        const uint16_t fitted_d = GGML_FP32_TO_FP16(fit(w, importance, n, mean_kept(w, n, zero), fitted_zero));
        if (fitted_d != 0) { // otherwise the important weights are too small for fp16: the others need not be lost
            memcpy(zero, fitted_zero, n/4);
            d = fitted_d;
        }
    }
    for (int i = 0; i < n; i += QK_SHERRY, ++y) {
        encode(w + i, MIN(n - i, QK_SHERRY)/4, zero + i/4, d, y);
    }
}

void quantize_row_sherry_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY == 0);
    block_sherry * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY; ++i) {
        ggml_sherry_quantize_run(x + i*QK_SHERRY, NULL, QK_SHERRY, blocks + i);
    }
}

size_t quantize_sherry(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_SHERRY == 0);
    block_sherry * y = dst;

    for (int64_t row = 0; row < nrows; ++row) {
        for (int64_t i = 0; i < n_per_row/QK_SHERRY; ++i) { // whole blocks: dst has no room for another one
            ggml_sherry_quantize_run(src + row*n_per_row + i*QK_SHERRY, imatrix ? imatrix + i*QK_SHERRY : NULL, QK_SHERRY, y++);
        }
    }
    return nrows*ggml_row_size(GGML_TYPE_SHERRY, n_per_row);
}

int64_t ggml_sherry_changed_in_run(const float * w, int n) {
    uint8_t zero[MAX_RUN_GROUPS];
    zero_positions(w, n, zero);
    const float alpha = mean_kept(w, n, zero);
    if (alpha == 0) {
        return 0;
    }
    const bool lost = GGML_FP32_TO_FP16(alpha) == 0;
    int64_t changed = 0;
    for (const float * v = w; v < w + n; v += 4) {
        changed += lost || (v[0] == 0) + (v[1] == 0) + (v[2] == 0) + (v[3] == 0) > 1;
    }
    return changed;
}

int64_t ggml_sherry_changed_groups(const float * x, int64_t k) {
    int64_t changed = 0;
    for (const float * w = x; w + QK_SHERRY <= x + k; w += QK_SHERRY) {
        changed += ggml_sherry_changed_in_run(w, QK_SHERRY);
    }
    return changed;
}

// The scale of a block whose largest value is not finite is NaN, and so is every product with it.
// Magnitudes below 2^-119 count as 0, because 127/amax would overflow.
float ggml_sherry_quantize_activations(const float * x, int n, int8_t * qs) {
    bool  finite = true;
    float amax   = 0;
    for (int j = 0; j < n; ++j) {
        finite = finite && isfinite(x[j]);
        amax   = fmaxf(amax, fabsf(x[j]));
    }
    if (!finite || amax < 0x1p-119f) {
        memset(qs, 0, n);
        return finite ? 0 : NAN;
    }
    const float id = 127.0f/amax;
    for (int j = 0; j < n; ++j) {
        qs[j%4*(n/4) + j/4] = (int8_t) lrintf(x[j]*id); // to nearest even, as the SIMD conversions do
    }
    return amax/127.0f;
}

void quantize_row_q8_sherry_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY == 0);
    block_q8_sherry * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY; ++i) {
        blocks[i].d   = ggml_sherry_quantize_activations(x + i*QK_SHERRY, QK_SHERRY, blocks[i].qs);
        blocks[i].sum = 0;
        for (int j = 0; j < QK_SHERRY; ++j) {
            blocks[i].sum += blocks[i].qs[j];
        }
    }
}

//
// dequantization and validation
//

void dequantize_row_sherry(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY == 0);
    const block_sherry * blocks = x;

    for (int64_t i = 0; i < k/QK_SHERRY; ++i) {
        const float d = GGML_FP16_TO_FP32(get_d(blocks + i));

        int8_t w[QK_SHERRY];
        ggml_sherry_decode(blocks + i, w);
        for (int j = 0; j < QK_SHERRY; ++j) {
            y[i*QK_SHERRY + j] = w[j]*d;
        }
    }
}

bool ggml_sherry_validate_scale(const char * function, size_t block, const uint8_t d[2]) {
    if ((d[1] & 0x7C) == 0x7C) {
        fprintf(stderr, "%s: scale of block %zu is not finite\n", function, block);
        return false;
    }
    if (d[1] & 0x80) {
        fprintf(stderr, "%s: scale of block %zu is negative\n", function, block);
        return false;
    }
    return true;
}

bool ggml_validate_sherry(const void * data, size_t nb) {
    const block_sherry * blocks = data;

    for (size_t i = 0; i < nb; ++i) {
        if (!ggml_sherry_validate_scale(__func__, i, blocks[i].d)) {
            return false;
        }
    }
    return true;
}
