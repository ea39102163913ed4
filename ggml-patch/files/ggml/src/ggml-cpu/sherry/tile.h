#pragma once

// Kernels for SHERRY weights rearranged into tiles: 32 rows of one block, so that a register holds the same four weights
// of many rows, and a row's sum never leaves its lane.
//
// Multiplying is looking up. A group of four weights has 32 patterns, so with four activations it has 32 possible sums,
// of which 16 are the others negated. Those sums are computed once per group of activations and looked up for every row:
// one byte or word shuffle for 32 rows x 4 weights. All sums are exact integers.
//
// STQ1_0's blocks are packed as two of SHERRY, those of SHERRY_G32 four at a time: the codes of a tile are SHERRY's, and
// four scales of each row follow them. A row of SHERRY_2P is one of SHERRY of twice as many blocks, and so are its tiles.
//
// docs/kernels.md has the drawings, the operation counts and what was tried beside this.

#include "ggml-backend.h"
#include "ggml-sherry-2p.h"
#include "ggml-sherry-g32.h"
#include "ggml-stq1.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHERRY_TILE_ROWS  32
#define SHERRY_TILE_BYTES (SHERRY_TILE_ROWS*sizeof(block_sherry)) // of one block: tiles take no more room than rows
#define SHERRY_TILE_SCALES (SHERRY_TILE_BYTES - 2*SHERRY_TILE_ROWS) // the fp16 scales of the rows end a tile's block

#define SHERRY_G32_SCALES     4 // of a row in a tile of SHERRY_G32: of weights 0..31, of 32..63, ..
#define SHERRY_G32_TILE_BYTES (SHERRY_TILE_SCALES + SHERRY_G32_SCALES*2*SHERRY_TILE_ROWS)

#define SHERRY_MAX_TOKENS 4 // of one call of mul

// the block of activations that block b of a tile meets, without a division
static inline int ggml_sherry_met_block(int b, int n_planes) {
    return n_planes == 1 ? b : b/SHERRY_2P_PLANES;
}

// n_tiles tiles, tile_stride bytes apart, times n_tokens columns of activations, n_blocks blocks of a tile. Of SHERRY_2P
// n_planes, two, of these meet the same block of activations, the first plane and then the second; else it is one:
// dst[t][32*i + r] = fma(sum of weights*qs, (scale of row r of tile i)*d[t][b/n_planes], dst[t][32*i + r]), one block b
// after the other; of SHERRY_G32 one scale after the other, d[t][4*b + k]. Blocks lie one after the other, of a tile as of
// tables[t]. With first, the first block of a row finds 0 in dst, whatever is there. With prefetch, weights come from memory, and the
// blocks that follow and the same blocks of the next tiles are wanted soon.
typedef void (*ggml_sherry_mul_t)(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_tokens,
                                  const void * const * tables, const float * const * d, float * const * dst, bool first,
                                  bool prefetch);

// Products of many tokens, of a kernel that has a unit for them: a panel of up to 128, in strips of 16.
#define SHERRY_STRIP_TOKENS 16
#define SHERRY_MANY_TOKENS  128
#define SHERRY_STRIP_BYTES(n_scales) (SHERRY_STRIP_TOKENS*(QK_SHERRY + (n_scales)*sizeof(float))) // of a block

struct ggml_sherry_many {
    // whether the system lets this process use the unit, which is asked before anything else
    bool (*allowed)(void);

    // A block of activations of n_tokens tokens of a strip, and the n_scales scales of each, to strip, which is aligned to
    // 64 bytes. Tokens that are missing are zeros.
    void (*arrange)(const block_q8_sherry * const * x, const float * const * d, int n_scales, int n_tokens, void * strip);

    // As ggml_sherry_mul_t, from 0 and for all blocks of a row: the first block of all strips, then the next.
    void (*mul)(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_scales, int n_tokens,
                const void * strips, float * const * dst);
};

struct ggml_sherry_tile_kernel {
    const char * name;

    // bytes that the tables of one block of activations take, a multiple of 64
    size_t table_bytes;

    // that mul takes at once
    int max_tiles;

    // one block of 32 rows, row_blocks blocks apart, to a tile and back
    void (*pack)  (const block_sherry * rows, size_t row_blocks, void * tile);
    void (*unpack)(const void * tile, block_sherry * rows, size_t row_blocks);

    // ggml_sherry_pack_stq1_0 and ggml_sherry_pack_g32 by a shorter way, where there is one, or NULL
    void (*pack_stq1_0)(const block_stq1_0 * rows, size_t row_blocks, void * tiles);
    void (*pack_g32)   (const block_sherry_g32 * rows, size_t row_blocks, int n_blocks, void * tile);

    // the sums of one block of activations, aligned to 64 bytes; scales are left to mul
    void (*tables)    (const block_q8_sherry * x, void * tables);
    void (*tables_g32)(const block_q8_sherry * x, void * tables);

    ggml_sherry_mul_t mul;
    ggml_sherry_mul_t mul_g32;

    const struct ggml_sherry_many * many; // or NULL
};

// one block of STQ1_0 of 32 rows, row_blocks blocks apart, to two tiles
void ggml_sherry_pack_stq1_0(const struct ggml_sherry_tile_kernel * kernel, const block_stq1_0 * rows, size_t row_blocks,
                             void * tiles);

// up to four blocks of SHERRY_G32 of 32 rows, row_blocks blocks apart, to a tile and back; those that are missing have the
// scale 0
void ggml_sherry_pack_g32  (const struct ggml_sherry_tile_kernel * kernel, const block_sherry_g32 * rows, size_t row_blocks,
                            int n_blocks, void * tile);
void ggml_sherry_unpack_g32(const struct ggml_sherry_tile_kernel * kernel, const void * tile, int n_blocks,
                            block_sherry_g32 * rows, size_t row_blocks);

// those that this library is compiled with, the one with the widest registers first, the generic one last, then NULL
GGML_BACKEND_API const struct ggml_sherry_tile_kernel * ggml_sherry_tile_kernel_at(size_t i);

// the one that tiles in memory are for: choice.cpp
GGML_BACKEND_API const struct ggml_sherry_tile_kernel * ggml_sherry_chosen_tile_kernel(void);

// the one for weights that stay in rows and are packed in each product: that is quickly done to tiles of bytes only
GGML_BACKEND_API const struct ggml_sherry_tile_kernel * ggml_sherry_packing_tile_kernel(void);

// by name, for tests and benches: "generic", "avx2", "avx512", "avx512vbmi", "amx", "neon"; NULL if this library has no such
// kernel
GGML_BACKEND_API const struct ggml_sherry_tile_kernel * ggml_sherry_tile_kernel_named(const char * name);

extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_generic;
extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx2;
extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx512;
extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_avx512vbmi;
extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_amx; // the same, with ggml_sherry_many_amx
extern const struct ggml_sherry_tile_kernel ggml_sherry_tile_neon;

extern const struct ggml_sherry_many ggml_sherry_many_amx;

// the weights of the codes of sign 0
extern const int8_t ggml_sherry_patterns[16][4];

// Tiles of bytes: byte j of the 20 bytes of codes, of all rows, then of the next j. For shuffles of bytes.
void ggml_sherry_pack_bytes     (const block_sherry * rows, size_t row_blocks, void * tile);
void ggml_sherry_pack_bytes_avx2(const block_sherry * rows, size_t row_blocks, void * tile);
void ggml_sherry_pack_bytes_neon(const block_sherry * rows, size_t row_blocks, void * tile);
void ggml_sherry_unpack_bytes(const void * tile, block_sherry * rows, size_t row_blocks);

void ggml_sherry_pack_stq1_0_avx2(const block_stq1_0 * rows, size_t row_blocks, void * tiles);
void ggml_sherry_pack_stq1_0_neon(const block_stq1_0 * rows, size_t row_blocks, void * tiles);

void ggml_sherry_pack_g32_avx2(const block_sherry_g32 * rows, size_t row_blocks, int n_blocks, void * tile);
void ggml_sherry_pack_g32_neon(const block_sherry_g32 * rows, size_t row_blocks, int n_blocks, void * tile);

#ifdef __cplusplus
}
#endif
