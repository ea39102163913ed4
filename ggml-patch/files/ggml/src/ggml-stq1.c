#include "ggml-stq1.h"
#include "ggml-impl.h"

#include <assert.h>
#include <math.h>

// 128 values of a row in the order that their SHERRY block has.
static void gather(const float * x, float * y) {
    for (int position = 0; position < SHERRY_GROUPS; ++position) {
        for (int p = 0; p < 4; ++p) {
            y[4*position + p] = x[ggml_stq1_weight(position, p)];
        }
    }
}

static void gather_block(const float * x, float * y) {
    gather(x, y);
    gather(x + QK_SHERRY, y + QK_SHERRY);
}

static void quantize_block(const float * x, const float * importance, block_stq1_0 * y) {
    float w[QK_STQ1_0], m[QK_STQ1_0];
    gather_block(x, w);
    if (importance) {
        gather_block(importance, m);
    }
    block_sherry halves[2];
    ggml_sherry_quantize_run(w, importance ? m : NULL, QK_STQ1_0, halves);
    ggml_stq1_from_sherry(halves, y);
}

void quantize_row_stq1_0_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_STQ1_0 == 0);
    block_stq1_0 * blocks = y;

    for (int64_t i = 0; i < k/QK_STQ1_0; ++i) {
        quantize_block(x + i*QK_STQ1_0, NULL, blocks + i);
    }
}

size_t quantize_stq1_0(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_STQ1_0 == 0);
    block_stq1_0 * y = dst;

    for (int64_t row = 0; row < nrows; ++row) {
        for (int64_t i = 0; i < n_per_row/QK_STQ1_0; ++i) { // whole blocks: dst has no room for another one
            quantize_block(src + row*n_per_row + i*QK_STQ1_0, imatrix ? imatrix + i*QK_STQ1_0 : NULL, y++);
        }
    }
    return nrows*ggml_row_size(GGML_TYPE_STQ1_0, n_per_row);
}

void dequantize_row_stq1_0(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_STQ1_0 == 0);
    const block_stq1_0 * blocks = x;

    for (int64_t i = 0; i < k/QK_STQ1_0; ++i) {
        const float d = GGML_FP16_TO_FP32((uint16_t) (blocks[i].d[0] | blocks[i].d[1] << 8));

        block_sherry halves[2];
        ggml_stq1_to_sherry(blocks + i, halves);
        for (int half = 0; half < 2; ++half, y += QK_SHERRY) {
            int8_t w[QK_SHERRY];
            ggml_sherry_decode(halves + half, w);
            for (int j = 0; j < QK_SHERRY; ++j) {
                y[ggml_stq1_weight(j/4, j%4)] = w[j]*d;
            }
        }
    }
}

int64_t ggml_stq1_changed_groups(const float * x, int64_t k) {
    int64_t changed = 0;
    for (const float * block = x; block + QK_STQ1_0 <= x + k; block += QK_STQ1_0) {
        float w[QK_STQ1_0];
        gather_block(block, w);
        changed += ggml_sherry_changed_in_run(w, QK_STQ1_0);
    }
    return changed;
}

bool ggml_validate_stq1_0(const void * data, size_t nb) {
    const block_stq1_0 * blocks = data;

    for (size_t i = 0; i < nb; ++i) {
        if (!ggml_sherry_validate_scale(__func__, i, blocks[i].d)) {
            return false;
        }
    }
    return true;
}

void quantize_row_q8_stq1_0_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY == 0);
    block_q8_sherry * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY; ++i) {
        float values[QK_SHERRY];
        gather(x + i*QK_SHERRY, values);
        quantize_row_q8_sherry_ref(values, blocks + i, QK_SHERRY);
    }
}
