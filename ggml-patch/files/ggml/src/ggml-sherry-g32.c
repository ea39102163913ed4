#include "ggml-sherry-g32.h"
#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static int get_index(const block_sherry_g32 * x, int g) {
    return g < 4 ? x->qs[g] & 0xF : x->qs[g - 4] >> 4;
}

void ggml_sherry_g32_join(const block_sherry_g32 * x, int n_blocks, block_sherry * y) {
    memset(y, 0, sizeof(*y));
    for (int k = 0; k < n_blocks; ++k) {
        for (int i = 0; i < SHERRY_G32_GROUPS; ++i) {
            const int g = SHERRY_G32_GROUPS*k + i;
            y->qs[g%16] |= (uint8_t) (get_index(x + k, i) << (g < 16 ? 0 : 4));
        }
        y->signs[k] = x[k].signs;
    }
}

void ggml_sherry_g32_split(const block_sherry * x, int n_blocks, block_sherry_g32 * y) {
    for (int k = 0; k < n_blocks; ++k) {
        memset(y[k].qs, 0, sizeof(y[k].qs));
        for (int i = 0; i < SHERRY_G32_GROUPS; ++i) {
            const int g = SHERRY_G32_GROUPS*k + i;
            const int index = g < 16 ? x->qs[g] & 0xF : x->qs[g - 16] >> 4;
            y[k].qs[i%4] |= (uint8_t) (index << (i < 4 ? 0 : 4));
        }
        y[k].signs = x->signs[k];
    }
}

void ggml_sherry_g32_decode(const block_sherry_g32 * x, int8_t w[QK_SHERRY_G32]) {
    block_sherry joined;
    int8_t all[QK_SHERRY];
    ggml_sherry_g32_join(x, 1, &joined);
    ggml_sherry_decode(&joined, all);
    memcpy(w, all, QK_SHERRY_G32);
}

static void quantize_block(const float * w, const float * importance, block_sherry_g32 * y) {
    block_sherry joined;
    ggml_sherry_quantize_run(w, importance, QK_SHERRY_G32, &joined);
    ggml_sherry_g32_split(&joined, 1, y);
    memcpy(y->d, joined.d, sizeof(y->d));
}

void quantize_row_sherry_g32_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY_G32 == 0);
    block_sherry_g32 * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY_G32; ++i) {
        quantize_block(x + i*QK_SHERRY_G32, NULL, blocks + i);
    }
}

size_t quantize_sherry_g32(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_SHERRY_G32 == 0);
    block_sherry_g32 * y = dst;

    for (int64_t row = 0; row < nrows; ++row) {
        for (int64_t i = 0; i < n_per_row/QK_SHERRY_G32; ++i) { // whole blocks: dst has no room for another one
            quantize_block(src + row*n_per_row + i*QK_SHERRY_G32, imatrix ? imatrix + i*QK_SHERRY_G32 : NULL, y++);
        }
    }
    return nrows*ggml_row_size(GGML_TYPE_SHERRY_G32, n_per_row);
}

void dequantize_row_sherry_g32(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY_G32 == 0);
    const block_sherry_g32 * blocks = x;

    for (int64_t i = 0; i < k/QK_SHERRY_G32; ++i) {
        const float d = GGML_FP16_TO_FP32((uint16_t) (blocks[i].d[0] | blocks[i].d[1] << 8));

        int8_t w[QK_SHERRY_G32];
        ggml_sherry_g32_decode(blocks + i, w);
        for (int j = 0; j < QK_SHERRY_G32; ++j) {
            y[i*QK_SHERRY_G32 + j] = w[j]*d;
        }
    }
}

int64_t ggml_sherry_g32_changed_groups(const float * x, int64_t k) {
    int64_t changed = 0;
    for (const float * w = x; w + QK_SHERRY_G32 <= x + k; w += QK_SHERRY_G32) {
        changed += ggml_sherry_changed_in_run(w, QK_SHERRY_G32);
    }
    return changed;
}

bool ggml_validate_sherry_g32(const void * data, size_t nb) {
    const block_sherry_g32 * blocks = data;

    for (size_t i = 0; i < nb; ++i) {
        if (!ggml_sherry_validate_scale(__func__, i, blocks[i].d)) {
            return false;
        }
    }
    return true;
}

void quantize_row_q8_sherry_g32_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY_G32 == 0);
    block_q8_sherry_g32 * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY_G32; ++i) {
        blocks[i].d = ggml_sherry_quantize_activations(x + i*QK_SHERRY_G32, QK_SHERRY_G32, blocks[i].qs);
    }
}
