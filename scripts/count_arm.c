// What count_arm.py counts the instructions of: one kernel, called as often as asked for.
//
//     count_arm KERNEL CALLS

#include "ggml-cpu/quants.h" // before ggml-common.h: it chooses what that declares
#include "ggml-common.h"
#include "ggml-cpu/sherry/row.h"
#include "ggml-cpu/sherry/tile.h"

#include <stdlib.h>
#include <string.h>

#define N      4096 // weights of a row
#define BLOCKS (N/QK_SHERRY)

static block_sherry    row[BLOCKS];
static block_q8_sherry x[BLOCKS];
static block_stq1_0    stq1[N/QK_STQ1_0];
static block_tq2_0     tq2_0[N/QK_K];
static block_q8_K      q8_K[N/QK_K];
static float           floats[N];

static char            tile[BLOCKS*SHERRY_TILE_BYTES];
static _Alignas(64) char tables[BLOCKS*8192];
static float           result[SHERRY_MAX_TOKENS][SHERRY_TILE_ROWS];

static void tile_mul(const struct ggml_sherry_tile_kernel * kernel, int n_tokens) {
    const void  * of_token[SHERRY_MAX_TOKENS];
    const float * d[SHERRY_MAX_TOKENS];
    float       * dst[SHERRY_MAX_TOKENS];
    for (int t = 0; t < SHERRY_MAX_TOKENS; ++t) {
        of_token[t] = tables;
        d[t]        = floats;
        dst[t]      = result[t];
    }
    for (; n_tokens > 0; n_tokens -= SHERRY_MAX_TOKENS) {
        const int n = n_tokens < SHERRY_MAX_TOKENS ? n_tokens : SHERRY_MAX_TOKENS;
        kernel->mul(1, sizeof(tile), tile, BLOCKS, 1, n, of_token, d, dst, true, true);
    }
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        return 1;
    }
    const char * what  = argv[1];
    const int    calls = atoi(argv[2]);
    const struct ggml_sherry_row_kernel  * rows  = ggml_sherry_row_kernel_named("neon");
    const struct ggml_sherry_tile_kernel * tiles = ggml_sherry_tile_kernel_named("neon");
    float s;

    for (int i = 0; i < calls; ++i) {
        if (strcmp(what, "row") == 0) {
            rows->sherry.vec_dot(N, &s, 0, row, 0, x, 0, 1);
        } else if (strcmp(what, "stq1_0") == 0) {
            rows->stq1_0.vec_dot(N, &s, 0, stq1, 0, x, 0, 1);
        } else if (strcmp(what, "tq2_0") == 0) {
            ggml_vec_dot_tq2_0_q8_K(N, &s, 0, tq2_0, 0, q8_K, 0, 1);
        } else if (strcmp(what, "quantize") == 0) {
            floats[0] = 1;
            rows->sherry.quantize(floats, x, N);
        } else if (strcmp(what, "tables") == 0) {
            for (int b = 0; b < BLOCKS; ++b) {
                tiles->tables(x + b, tables + b*tiles->table_bytes);
            }
        } else if (strncmp(what, "tile", 4) == 0) {
            tile_mul(tiles, atoi(what + 4));
        } else {
            return 1;
        }
    }
    return 0;
}
