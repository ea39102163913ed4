// The NEON kernels beside the generic ones, with equality: compiled for several flags and run by test_arm.py.

#include "ggml-cpu/sherry/stq1.h"
#include "ggml-cpu/sherry/tile.h"
#include "ggml-impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition, ...)                                                     \
    if (!(condition)) {                                                           \
        fprintf(stderr, "line %d: %s: ", __LINE__, #condition);                   \
        fprintf(stderr, __VA_ARGS__);                                             \
        fprintf(stderr, "\n");                                                    \
        exit(1);                                                                  \
    }

#define ROWS       SHERRY_TILE_ROWS
#define MAX_BLOCKS 32
#define MAX_TILES  8
#define MAGNITUDE(b) (b%2 ? 5 : 127) // 3*127 = 31*12 + 9 and 3*5 = 15: the largest parts that a sum is looked up in
#define START      1000 // what results are added to

size_t ggml_row_size(enum ggml_type type, int64_t n) {
    return type == GGML_TYPE_SHERRY ? n/QK_SHERRY*sizeof(block_sherry) :
           type == GGML_TYPE_STQ1_0 ? n/QK_STQ1_0*sizeof(block_stq1_0) : 0;
}

static uint32_t random_bits(void) {
    static uint64_t state = 1;
    state = state*6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (state >> 33);
}

static float random_float(void) {
    return (float) random_bits()/(1u << 30) - 1;
}

// sign << 4 | index
static void set_code(block_sherry * x, int g, int code) {
    x->qs[g%16]   |= (uint8_t) ((code & 15) << (g < 16 ? 0 : 4));
    x->signs[g/8] |= (uint8_t) ((code >> 4) << g%8);
}

static void set_scale(block_sherry * x, float d) {
    const uint16_t bits = GGML_FP32_TO_FP16(d);
    memcpy(x->d, &bits, sizeof(bits));
}

static int min(int a, int b) {
    return a < b ? a : b;
}

// What weights and activations hold. Rows and tokens have scale 1, so that results are integers, but for SCALED.
enum kind {
    SAME_CODE, // row r holds code r%32 everywhere; activations of token t, block b are code b + 8*t, times
               // MAGNITUDE(b): where they meet, the sum is the largest there is, or the smallest
    ALL_CODES, // row r holds code (r + g + b)%32 in group g of block b; activations are random
    SCALED,    // everything is random
    N_KINDS
};

static void fill_row(enum kind kind, int r, int n_blocks, block_sherry * x) {
    memset(x, 0, n_blocks*sizeof(*x));
    for (int b = 0; b < n_blocks; ++b) {
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            set_code(x + b, g, kind == SAME_CODE ? r%32 : kind == ALL_CODES ? (r + g + b)%32 : (int) random_bits()%32);
        }
        set_scale(x + b, kind == SCALED ? 0.1f + (float) (random_bits()%1000) : 1);
    }
}

static void fill_activations(enum kind kind, int t, int n_blocks, block_q8_sherry * y) {
    for (int b = 0; b < n_blocks; ++b) {
        block_sherry same;
        int8_t w[QK_SHERRY];
        memset(&same, 0, sizeof(same));
        for (int g = 0; g < SHERRY_GROUPS; ++g) {
            set_code(&same, g, (b + 8*t)%32);
        }
        ggml_sherry_decode(&same, w);
        y[b].d   = kind == SCALED ? 0.01f + fabsf(random_float()) : 1;
        y[b].sum = 0;
        for (int i = 0; i < QK_SHERRY; ++i) {
            const int q = kind == SAME_CODE ? MAGNITUDE(b)*w[i] : (int) (random_bits()%255) - 127;
            y[b].qs[i%4*SHERRY_GROUPS + i/4] = (int8_t) q;
            y[b].sum += q;
        }
    }
}

// What a row times activations, added to start, should be, and how far a float result may be from it: a term is
// rounded in the product of its scales, in the sum with each block and in adding up four parts; none of these exceeds
// the sum of magnitudes.
static double expected(double start, int n_blocks, const block_sherry * x, const block_q8_sherry * y,
                       double * tolerance) {
    double sum = start, magnitudes = fabs(start);
    for (int b = 0; b < n_blocks; ++b) {
        int32_t isum;
        uint16_t bits;
        ggml_sherry_isums_generic(QK_SHERRY, &isum, x + b, y + b);
        memcpy(&bits, x[b].d, sizeof(bits));
        const double scale = (double) GGML_FP16_TO_FP32(bits)*(double) y[b].d;
        sum        += scale*isum;
        magnitudes += scale*96*127; // an activation is 127 at most
    }
    *tolerance = (n_blocks + 4)*0x1p-24*magnitudes;
    return sum;
}

//
// rows
//

static void check_row(enum kind kind, int r, int t, int n_blocks) {
    char * room = malloc(n_blocks*sizeof(block_sherry) + 2);
    block_sherry    * x = (block_sherry *) (room + 1 - (uintptr_t) room%2); // odd
    block_q8_sherry * y = malloc(n_blocks*sizeof(*y));
    fill_row(kind, r, n_blocks, x);
    fill_activations(kind, t, n_blocks, y);

    int32_t generic[MAX_BLOCKS], neon[MAX_BLOCKS];
    ggml_sherry_isums_generic(n_blocks*QK_SHERRY, generic, x, y);
    ggml_sherry_isums_neon   (n_blocks*QK_SHERRY, neon,    x, y);
    for (int b = 0; b < n_blocks; ++b) {
        CHECK(neon[b] == generic[b], "kind %d, row %d, block %d of %d: %d, not %d", kind, r, b, n_blocks, neon[b],
              generic[b]);
        if (kind == SAME_CODE && r == (b + 8*t)%32) {
            CHECK(neon[b] == 96*MAGNITUDE(b), "the largest sum, row %d: %d", r, neon[b]);
        }
        if (kind == SAME_CODE && r == (b + 8*t + 16)%32) {
            CHECK(neon[b] == -96*MAGNITUDE(b), "the smallest sum, row %d: %d", r, neon[b]);
        }
    }
    double tolerance;
    const double sum = expected(0, n_blocks, x, y, &tolerance);
    float s, dispatched;
    ggml_vec_dot_sherry_q8_sherry_neon(n_blocks*QK_SHERRY, &s, 0, x, 0, y, 0, 1);
    CHECK(fabs((double) s - sum) <= (kind == SCALED ? tolerance : 0), "kind %d, %d blocks: %g, not %g", kind, n_blocks,
          (double) s, sum);
    ggml_vec_dot_sherry_q8_sherry(n_blocks*QK_SHERRY, &dispatched, 0, x, 0, y, 0, 1);
    CHECK(s == dispatched, "another kernel is used");
    free(room);
    free(y);
}

// The same bytes as the halves of STQ1_0 blocks, with activations in their order: the sums are those of the rows above.
static void check_stq1_row(enum kind kind, int r, int t, int n_blocks) {
    block_sherry    * sherry = malloc(2*n_blocks*sizeof(*sherry));
    char            * room   = malloc(n_blocks*sizeof(block_stq1_0) + 2);
    block_stq1_0    * x      = (block_stq1_0 *) (room + 1 - (uintptr_t) room%2); // odd
    block_q8_sherry * y      = malloc(2*n_blocks*sizeof(*y));
    fill_row(kind, r, 2*n_blocks, sherry);
    fill_activations(kind, t, 2*n_blocks, y);
    for (int b = 0; b < n_blocks; ++b) {
        memcpy(sherry[2*b + 1].d, sherry[2*b].d, sizeof(sherry->d));
        ggml_stq1_from_sherry(sherry + 2*b, x + b);
    }
    int32_t expected_sums[2*MAX_BLOCKS], generic[2*MAX_BLOCKS], neon[2*MAX_BLOCKS];
    ggml_sherry_isums_generic(2*n_blocks*QK_SHERRY, expected_sums, sherry, y);
    ggml_stq1_isums_generic  (2*n_blocks*QK_SHERRY, generic,       x,      y);
    ggml_stq1_isums_neon     (2*n_blocks*QK_SHERRY, neon,          x,      y);
    for (int i = 0; i < 2*n_blocks; ++i) {
        CHECK(generic[i] == expected_sums[i] && neon[i] == expected_sums[i],
              "kind %d, row %d, half block %d: %d, generic %d, not %d", kind, r, i, neon[i], generic[i], expected_sums[i]);
    }
    double tolerance;
    const double sum = expected(0, 2*n_blocks, sherry, y, &tolerance);
    float s, dispatched;
    ggml_vec_dot_stq1_0_q8_stq1_0_neon(n_blocks*QK_STQ1_0, &s, 0, x, 0, y, 0, 1);
    CHECK(fabs((double) s - sum) <= (kind == SCALED ? tolerance : 0), "kind %d, %d blocks: %g, not %g", kind, n_blocks,
          (double) s, sum);
    ggml_vec_dot_stq1_0_q8_stq1_0(n_blocks*QK_STQ1_0, &dispatched, 0, x, 0, y, 0, 1);
    CHECK(s == dispatched, "another kernel is used");
    free(sherry);
    free(room);
    free(y);
}

//
// activations
//

static void check_quantized(const float * x, int n_blocks) {
    block_q8_sherry reference[5], neon[5], dispatched[5];
    memset(neon, 0xCC, sizeof(neon));
    memset(dispatched, 0xCC, sizeof(dispatched));
    quantize_row_q8_sherry_ref (x, reference,  n_blocks*QK_SHERRY);
    quantize_row_q8_sherry_neon(x, neon,       n_blocks*QK_SHERRY);
    quantize_row_q8_sherry     (x, dispatched, n_blocks*QK_SHERRY);
    for (int b = 0; b < n_blocks; ++b) {
        CHECK(memcmp(reference + b, neon + b, sizeof(reference[b])) == 0, "block %d of %d, largest %g", b, n_blocks,
              (double) reference[b].d*127);
        CHECK(memcmp(neon + b, dispatched + b, sizeof(neon[b])) == 0, "another kernel is used");
    }
    quantize_row_q8_stq1_0_ref (x, reference,  n_blocks*QK_SHERRY);
    quantize_row_q8_stq1_0_neon(x, neon,       n_blocks*QK_SHERRY);
    quantize_row_q8_stq1_0     (x, dispatched, n_blocks*QK_SHERRY);
    for (int b = 0; b < n_blocks; ++b) {
        CHECK(memcmp(reference + b, neon + b, sizeof(reference[b])) == 0, "STQ1_0: block %d of %d, largest %g", b,
              n_blocks, (double) reference[b].d*127);
        CHECK(memcmp(neon + b, dispatched + b, sizeof(neon[b])) == 0, "another kernel is used");
    }
}

static void check_activations(void) {
    const float special[] = {
        0, -0.0f, 1e-45f, 1e-40f, nextafterf(0x1p-119f, 0), 0x1p-119f, -0x1p-119f, 1, 127, -3.4e38f,
        INFINITY, -INFINITY, NAN, -NAN,
    };
    for (int n_blocks = 1; n_blocks <= 5; ++n_blocks) {
        for (size_t i = 0; i < sizeof(special)/sizeof(special[0]); ++i) {
            for (int kind = 0; kind < 4; ++kind) {
                float x[5*QK_SHERRY];
                for (int j = 0; j < n_blocks*QK_SHERRY; ++j) {
                    // random, the special value alone, everywhere, among halves (with 127 the scale is 1: ties)
                    x[j] = kind == 0 ? random_float()*5 :
                           kind == 1 ? 0 :
                           kind == 2 ? special[i] : (float) (j%QK_SHERRY) - 63.5f;
                }
                x[random_bits()%(uint32_t) (n_blocks*QK_SHERRY)] = special[i];
                check_quantized(x, n_blocks);
            }
        }
    }
}

//
// tiles
//

static void check_tiles(const struct ggml_sherry_tile_kernel * kernel, enum kind kind, int n_tiles, int n_tokens,
                        int n_blocks, bool first) {
    const size_t stride = (n_blocks + 1)*SHERRY_TILE_BYTES; // more than needed: it has to be used
    char * rows_room  = malloc(n_tiles*ROWS*n_blocks*sizeof(block_sherry) + 2);
    char * tiles_room = malloc(n_tiles*stride + 2);
    block_sherry * rows = (block_sherry *) (rows_room + 1 - (uintptr_t) rows_room%2); // odd, as are the tiles
    char * tiles = tiles_room + 1 - (uintptr_t) tiles_room%2;
    memset(tiles, 0xCC, n_tiles*stride);

    for (int i = 0; i < n_tiles; ++i) {
        for (int r = 0; r < ROWS; ++r) {
            fill_row(kind, r + i, n_blocks, rows + (i*ROWS + r)*n_blocks);
        }
        for (int b = 0; b < n_blocks; ++b) {
            const block_sherry * from = rows + i*ROWS*n_blocks + b;
            char * tile = tiles + i*stride + b*SHERRY_TILE_BYTES;
            kernel->pack(from, n_blocks, tile);
            block_sherry back[ROWS];
            kernel->unpack(tile, back, 1);
            for (int r = 0; r < ROWS; ++r) {
                CHECK(memcmp(back + r, from + r*n_blocks, sizeof(*back)) == 0, "%s: row %d", kernel->name, r);
            }
        }
    }

    block_q8_sherry * x[SHERRY_MAX_TOKENS];
    const void  * tables[SHERRY_MAX_TOKENS];
    const float * d[SHERRY_MAX_TOKENS];
    float       * dst[SHERRY_MAX_TOKENS];
    for (int t = 0; t < n_tokens; ++t) {
        x[t] = malloc(n_blocks*sizeof(**x));
        fill_activations(kind, t, n_blocks, x[t]);
        char  * table  = aligned_alloc(64, n_blocks*kernel->table_bytes);
        float * scales = malloc(n_blocks*sizeof(float));
        for (int b = 0; b < n_blocks; ++b) {
            kernel->tables(x[t] + b, table + b*kernel->table_bytes);
            scales[b] = x[t][b].d;
        }
        tables[t] = table;
        d[t]      = scales;
        dst[t]    = malloc((n_tiles*ROWS + 1)*sizeof(float));
        for (int i = 0; i <= n_tiles*ROWS; ++i) {
            dst[t][i] = first && i < n_tiles*ROWS ? NAN : START;
        }
    }

    kernel->mul(n_tiles, stride, tiles, n_blocks, n_tokens, tables, d, dst, first, first);

    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_tiles*ROWS; ++r) {
            double tolerance;
            const double sum = expected(first ? 0 : START, n_blocks, rows + r*n_blocks, x[t], &tolerance);
            CHECK(fabs((double) dst[t][r] - sum) <= (kind == SCALED ? tolerance : 0),
                  "%s: kind %d, %d tiles, %d tokens, %d blocks, first %d: row %d of token %d: %g, not %g", kernel->name,
                  kind, n_tiles, n_tokens, n_blocks, first, r, t, (double) dst[t][r], sum);
        }
        CHECK(dst[t][n_tiles*ROWS] == START, "%s: written beyond the rows", kernel->name);
        free(x[t]);
        free((void *) tables[t]);
        free((void *) d[t]);
        free(dst[t]);
    }
    free(rows_room);
    free(tiles_room);
}

int main(void) {
    static const int lengths[] = { 1, 3, 5, MAX_BLOCKS };
    const struct ggml_sherry_tile_kernel * kernels[] = {
        ggml_sherry_tile_kernel_named("generic"), ggml_sherry_tile_kernel_named("neon"),
    };
    const struct ggml_sherry_tile_kernel * best = ggml_sherry_best_tile_kernel();
    CHECK(kernels[1] && best == kernels[1], "the library's kernel is %s", best->name);

    check_activations();
    for (int kind = 0; kind < N_KINDS; ++kind) {
        for (int i = 0; i < 4; ++i) {
            for (int r = 0; r < 32; ++r) {
                check_row(kind, r, r%4, lengths[i]);
                check_stq1_row(kind, r, r%4, lengths[i]);
            }
            for (int k = 0; k < 2; ++k) {
                for (int n_tiles = 1; n_tiles <= min(kernels[k]->max_tiles, MAX_TILES); ++n_tiles) {
                    for (int n_tokens = 1; n_tokens <= SHERRY_MAX_TOKENS; ++n_tokens) {
                        check_tiles(kernels[k], kind, n_tiles, n_tokens, lengths[i], true);
                        check_tiles(kernels[k], kind, n_tiles, n_tokens, lengths[i], false);
                    }
                }
            }
        }
    }
    puts("ok");
    return 0;
}
