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

//
// the other types, by way of SHERRY blocks
//

void ggml_sherry_pack_stq1_0(const struct ggml_sherry_tile_kernel * kernel, const block_stq1_0 * rows, size_t row_blocks,
                             void * tiles) {
    if (kernel->pack_stq1_0 != NULL) {
        kernel->pack_stq1_0(rows, row_blocks, tiles);
        return;
    }
    block_sherry halves[SHERRY_TILE_ROWS][2];
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        ggml_stq1_to_sherry(rows + r*row_blocks, halves[r]);
    }
    kernel->pack(halves[0],     2, tiles);
    kernel->pack(halves[0] + 1, 2, (uint8_t *) tiles + SHERRY_TILE_BYTES);
}

void ggml_sherry_pack_g32(const struct ggml_sherry_tile_kernel * kernel, const block_sherry_g32 * rows, size_t row_blocks,
                          int n_blocks, void * tile) {
    if (kernel->pack_g32 != NULL) {
        kernel->pack_g32(rows, row_blocks, n_blocks, tile);
        return;
    }
    block_sherry joined[SHERRY_TILE_ROWS];
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        ggml_sherry_g32_join(rows + r*row_blocks, n_blocks, joined + r);
    }
    kernel->pack(joined, 1, tile); // with a scale of each row, which those of SHERRY_G32 replace

    uint8_t * scales = (uint8_t *) tile + SHERRY_TILE_SCALES;
    memset(scales, 0, SHERRY_G32_TILE_BYTES - SHERRY_TILE_SCALES);
    for (int k = 0; k < n_blocks; ++k) {
        for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
            memcpy(scales + 2*(SHERRY_TILE_ROWS*k + r), rows[r*row_blocks + k].d, 2);
        }
    }
}

void ggml_sherry_unpack_g32(const struct ggml_sherry_tile_kernel * kernel, const void * tile, int n_blocks,
                            block_sherry_g32 * rows, size_t row_blocks) {
    block_sherry joined[SHERRY_TILE_ROWS];
    kernel->unpack(tile, joined, 1);
    for (size_t r = 0; r < SHERRY_TILE_ROWS; ++r) {
        ggml_sherry_g32_split(joined + r, n_blocks, rows + r*row_blocks);
        for (int k = 0; k < n_blocks; ++k) {
            memcpy(rows[r*row_blocks + k].d, (const uint8_t *) tile + SHERRY_TILE_SCALES + 2*(SHERRY_TILE_ROWS*k + r), 2);
        }
    }
}

//
// generic
//

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

// integers of n_groups groups: sums[r] of 32 rows
static void isums_generic(const uint8_t * tile, int first, int n_groups, const int16_t (* table)[16], int32_t * sums) {
    const uint8_t * signs = tile + offsetof(block_sherry, signs)*SHERRY_TILE_ROWS;
    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
        sums[r] = 0;
        for (int g = first; g < first + n_groups; ++g) {
            const int byte  = tile[g%16*SHERRY_TILE_ROWS + r];
            const int value = table[g][g < 16 ? byte & 0xF : byte >> 4];
            sums[r] += signs[g/8*SHERRY_TILE_ROWS + r] >> g%8 & 1 ? -value : value;
        }
    }
}

// a row in a tile has n_scales scales
static void mul_rows(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_scales, int n_tokens,
                     const void * const * tables, const float * const * d, float * const * dst, bool first) {
    const size_t tile_bytes = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    const int    n_groups   = SHERRY_GROUPS/n_scales;
    for (int i = 0; i < n_tiles; ++i) {
        for (int b = 0; b < n_blocks; ++b) {
            const int met = ggml_sherry_met_block(b, n_planes);
            const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride + b*tile_bytes;
            for (int t = 0; t < n_tokens; ++t) {
                for (int k = 0; k < n_scales; ++k) {
                    int32_t sums[SHERRY_TILE_ROWS];
                    isums_generic(tile, n_groups*k, n_groups, (const int16_t (*)[16]) tables[t] + met*SHERRY_GROUPS, sums);

                    float * out = dst[t] + SHERRY_TILE_ROWS*i;
                    for (int r = 0; r < SHERRY_TILE_ROWS; ++r) {
                        uint16_t bits;
                        memcpy(&bits, tile + SHERRY_TILE_SCALES + 2*(SHERRY_TILE_ROWS*k + r), sizeof(bits));
                        const float scale = GGML_FP16_TO_FP32(bits)*d[t][n_scales*met + k];
                        out[r] = fmaf((float) sums[r], scale, first && b == 0 && k == 0 ? 0 : out[r]);
                    }
                }
            }
        }
    }
}

static void mul_generic(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                        const void * const * tables, const float * const * d, float * const * dst, bool first,
                        bool prefetch) {
    GGML_UNUSED(prefetch);
    mul_rows(n_tiles, tile_stride, tiles, n_blocks, n_planes, 1, n_tokens, tables, d, dst, first);
}

static void mul_g32_generic(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                            const void * const * tables, const float * const * d, float * const * dst, bool first,
                            bool prefetch) {
    GGML_UNUSED(prefetch);
    mul_rows(n_tiles, tile_stride, tiles, n_blocks, n_planes, SHERRY_G32_SCALES, n_tokens, tables, d, dst, first);
}

const struct ggml_sherry_tile_kernel ggml_sherry_tile_generic = {
    .name        = "generic",
    .table_bytes = SHERRY_GROUPS*16*sizeof(int16_t),
    .max_tiles   = 4,
    .pack        = ggml_sherry_pack_bytes,
    .unpack      = ggml_sherry_unpack_bytes,
    .tables      = tables_generic,
    .tables_g32  = tables_generic,
    .mul         = mul_generic,
    .mul_g32     = mul_g32_generic,
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
#if defined(SHERRY_ISA_AMX)
    &ggml_sherry_tile_amx,
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
