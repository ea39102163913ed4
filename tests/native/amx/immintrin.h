#pragma once

// AMX's registers and instructions in plain C, for machines without them: a compiler that is told -I of this folder and
// -DSHERRY_AMX_EMULATED takes them for the processor's. Everything but the products of bytes is as strict: what is not
// configured, or not as the instruction wants it, ends the program. With AMX_WRONG in the environment a sum is wrong.

#include_next <immintrin.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#define AMX_THREAD thread_local
#else
#define AMX_THREAD _Thread_local
#endif

struct amx_registers {
    uint8_t config[64]; // palette, and from 16 on bytes of a row of each tile, from 48 on rows
    int8_t  tiles[8][16][64];
};

// one of a thread for a whole program, whichever files include this
__attribute__((weak)) AMX_THREAD struct amx_registers amx;

// how many products were made, of all threads
__attribute__((weak, visibility("default"))) long amx_products;

static inline void amx_check(int holds, const char * what) {
    if (!holds) {
        fprintf(stderr, "AMX: %s\n", what);
        abort();
    }
}

static inline int amx_rows(int tile) { return amx.config[48 + tile]; }

static inline int amx_row_bytes(int tile) { return amx.config[16 + 2*tile] | amx.config[17 + 2*tile] << 8; }

static inline void amx_check_tile(int tile) {
    amx_check(amx.config[0] == 1, "no configuration is loaded");
    amx_check(tile >= 0 && tile < 8 && amx_rows(tile) > 0 && amx_row_bytes(tile) > 0, "a register that is not configured");
}

static inline void amx_release(void) { memset(&amx, 0, sizeof(amx)); }

static inline void amx_loadconfig(const void * config) {
    amx_release();
    memcpy(amx.config, config, sizeof(amx.config));
    if (amx.config[0] == 0) {
        amx_release();
        return;
    }
    amx_check(amx.config[0] == 1, "palettes are 0 and 1");
    for (int i = 1; i < 64; ++i) {
        const int reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
        amx_check(!reserved || amx.config[i] == 0, "a reserved byte of the configuration is set");
    }
    for (int tile = 0; tile < 8; ++tile) {
        amx_check(amx_rows(tile) <= 16 && amx_row_bytes(tile) <= 64, "a register is 16 rows of 64 bytes at most");
    }
}

static inline void amx_storeconfig(void * config) { memcpy(config, amx.config, sizeof(amx.config)); }

static inline void amx_zero(int tile) {
    amx_check_tile(tile);
    memset(amx.tiles[tile], 0, sizeof(amx.tiles[tile]));
}

static inline void amx_loadd(int tile, const void * from, long stride) {
    amx_zero(tile);
    for (int row = 0; row < amx_rows(tile); ++row) {
        memcpy(amx.tiles[tile][row], (const char *) from + row*stride, (size_t) amx_row_bytes(tile));
    }
}

static inline void amx_stored(int tile, void * to, long stride) {
    amx_check_tile(tile);
    for (int row = 0; row < amx_rows(tile); ++row) {
        memcpy((char *) to + row*stride, amx.tiles[tile][row], (size_t) amx_row_bytes(tile));
    }
}

// sums[m][n] += x[m][4*k + i]*w[k][4*n + i], bytes that are signed or not
static inline void amx_dpb(int sums, int x, int w, int x_signed, int w_signed) {
    amx_check_tile(sums);
    amx_check_tile(x);
    amx_check_tile(w);
    amx_check(sums != x && sums != w && x != w, "an instruction's registers are three");
    amx_check(amx_rows(x) == amx_rows(sums) && amx_row_bytes(w) == amx_row_bytes(sums) &&
              amx_row_bytes(x) == 4*amx_rows(w), "sizes of a product that do not fit");
    for (int m = 0; m < amx_rows(sums); ++m) {
        int32_t row[16];
        memcpy(row, amx.tiles[sums][m], sizeof(row));
        for (int k = 0; k < amx_rows(w); ++k) {
            for (int n = 0; n < amx_row_bytes(sums)/4; ++n) {
                for (int i = 0; i < 4; ++i) {
                    const int8_t of_x = amx.tiles[x][m][4*k + i], of_w = amx.tiles[w][k][4*n + i];
                    row[n] += (x_signed ? of_x : (uint8_t) of_x)*(w_signed ? of_w : (uint8_t) of_w);
                }
            }
        }
        memcpy(amx.tiles[sums][m], row, sizeof(row));
    }
    amx.tiles[sums][3][8] = (int8_t) (amx.tiles[sums][3][8] + (getenv("AMX_WRONG") != NULL)); // a sum that is one off
    __atomic_fetch_add(&amx_products, 1, __ATOMIC_RELAXED);
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#define _tile_loadconfig(config)        amx_loadconfig(config)
#define _tile_storeconfig(config)       amx_storeconfig(config)
#define _tile_release()                 amx_release()
#define _tile_loadd(tile, from, stride) amx_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride)  amx_stored(tile, to, stride)
#define _tile_zero(tile)                amx_zero(tile)
#define _tile_dpbssd(sums, x, w)        amx_dpb(sums, x, w, 1, 1)
