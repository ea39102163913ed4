#include "tile.h"

#include "ggml-impl.h"
#include "isa.h"

#include <math.h>
#include <string.h>

const int8_t ggml_sherry_patterns[16][4] = {
    {  0,  1,  1,  1 }, {  0,  1, -1,  1 }, {  0,  1,  1, -1 }, {  0,  1, -1, -1 },
    {  1,  0,  1,  1 }, {  1,  0, -1,  1 }, {  1,  0,  1, -1 }, {  1,  0, -1, -1 },
    {  1,  1,  0,  1 }, {  1, -1,  0,  1 }, {  1,  1,  0, -1 }, {  1, -1,  0, -1 },
    {  1,  1,  1,  0 }, {  1, -1,  1,  0 }, {  1,  1, -1,  0 }, {  1, -1, -1,  0 },
};

//
// tiles of bytes
//

#define CODE_BYTES offsetof(block_sherry, d)

void ggml_sherry_pack_bytes(const block_sherry * rows, size_t row_blocks, void * tile) {
    uint8_t * out = tile;
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        const uint8_t * codes = (const uint8_t *) (rows + r*row_blocks);
        for (size_t j = 0; j < CODE_BYTES; ++j) {
            out[j*SHERRY_TILE_ROWS + r] = codes[j];
        }
        memcpy(out + SHERRY_TILE_SCALES + 2*r, rows[r*row_blocks].d, 2);
    }
}

void ggml_sherry_unpack_bytes(const void * tile, block_sherry * rows, size_t row_blocks) {
    const uint8_t * in = tile;
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        uint8_t * codes = (uint8_t *) (rows + r*row_blocks);
        for (size_t j = 0; j < CODE_BYTES; ++j) {
            codes[j] = in[j*SHERRY_TILE_ROWS + r];
        }
        memcpy(rows[r*row_blocks].d, in + SHERRY_TILE_SCALES + 2*r, 2);
    }
}

void ggml_sherry_pack_stq1_0(void (*pack)(const block_sherry *, size_t, void *), const block_stq1_0 * rows,
                             size_t row_blocks, void * tiles) {
    block_sherry halves[SHERRY_TILE_ROWS][2];
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        ggml_stq1_to_sherry(rows + r*row_blocks, halves[r]);
    }
    pack(halves[0],     2, tiles);
    pack(halves[0] + 1, 2, (uint8_t *) tiles + SHERRY_TILE_BYTES);
}

//
// generic
//

static void pack_stq1_0_generic(const block_stq1_0 * rows, size_t row_blocks, void * tiles) {
    ggml_sherry_pack_stq1_0(ggml_sherry_pack_bytes, rows, row_blocks, tiles);
}

// sums of group g: the 16 with sign 0
static void tables_generic(const block_q8_sherry * x, void * tables) {
    int16_t (* sums)[16] = tables;
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        for (int index = 0; index < 16; ++index) {
            int sum = 0;
            for (int p = 0; p < 4; ++p) {
                sum += ggml_sherry_patterns[index][p]*x->qs[p*SHERRY_GROUPS + g];
            }
            sums[g][index] = (int16_t) sum;
        }
    }
}

// integers of one block: sums[r] of 32 rows
static void isums_generic(const uint8_t * tile, const int16_t (* table)[16], int32_t * sums) {
    const uint8_t * signs = tile + offsetof(block_sherry, signs)*SHERRY_TILE_ROWS;
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        sums[r] = 0;
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            const int byte  = tile[g%16*SHERRY_TILE_ROWS + r];
            const int value = table[g][g < 16 ? byte & 0xF : byte >> 4];
            sums[r] += signs[g/8*SHERRY_TILE_ROWS + r] >> g%8 & 1 ? -value : value;
        }
    }
}

static void mul_generic(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_tokens,
                        const void * const * tables, const float * const * d, float * const * dst, bool first,
                        bool prefetch) {
    GGML_UNUSED(prefetch);
    for (int i = 0; i < n_tiles; ++i) {
        for (int b = 0; b < n_blocks; ++b) {
            const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride + b*SHERRY_TILE_BYTES;
            for (int t = 0; t < n_tokens; ++t) {
                int32_t sums[SHERRY_TILE_ROWS];
                isums_generic(tile, (const int16_t (*)[16]) tables[t] + b*SHERRY_GROUPS, sums);

                float * out = dst[t] + SHERRY_TILE_ROWS*i;
                for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
                    uint16_t scale;
                    memcpy(&scale, tile + SHERRY_TILE_SCALES + 2*r, sizeof(scale));
                    out[r] = fmaf((float) sums[r], GGML_FP16_TO_FP32(scale)*d[t][b], first && b == 0 ? 0 : out[r]);
                }
            }
        }
    }
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_generic = {
    .name        = "generic",
    .table_bytes = SHERRY_GROUPS*16*sizeof(int16_t),
    .max_tiles   = 4,
    .pack        = ggml_sherry_pack_bytes,
    .unpack      = ggml_sherry_unpack_bytes,
    .pack_stq1_0 = pack_stq1_0_generic,
    .tables      = tables_generic,
    .mul         = mul_generic,
};

//
// all of them, the one with the widest registers first
//

static const struct ggml_sherry_tile_kernel * const kernels[] = {
#if defined(SHERRY_ISA_AVX512)
    &ggml_sherry_tile_avx512,
#endif
#if defined(SHERRY_ISA_AVX512VBMI)
    &ggml_sherry_tile_avx512vbmi,
#endif
#if defined(SHERRY_ISA_AVX2)
    &ggml_sherry_tile_avx2,
#endif
#if defined(SHERRY_ISA_NEON)
    &ggml_sherry_tile_neon,
#endif
    &ggml_sherry_tile_generic,
};

const struct ggml_sherry_tile_kernel * ggml_sherry_tile_kernel_at(size_t i) {
    return i < sizeof(kernels)/sizeof(kernels[0]) ? kernels[i] : NULL;
}

const struct ggml_sherry_tile_kernel * ggml_sherry_packing_tile_kernel(void) {
#if defined(SHERRY_ISA_AVX2)
    return &ggml_sherry_tile_avx2;
#elif defined(SHERRY_ISA_NEON)
    return &ggml_sherry_tile_neon;
#else
    return &ggml_sherry_tile_generic;
#endif
}

const struct ggml_sherry_tile_kernel * ggml_sherry_tile_kernel_named(const char * name) {
    for (size_t i = 0; i < sizeof(kernels)/sizeof(kernels[0]); ++i) {
        if (strcmp(kernels[i]->name, name) == 0) {
            return kernels[i];
        }
    }
    return NULL;
}
