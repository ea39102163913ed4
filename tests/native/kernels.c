// All kernels that are compiled with it, beside the generic ones and beside plain sums. test_sanitizers.py compiles it
// for x86-64 and for this machine, test_arm.py for three sets of ARM instructions.
//
//     kernels [TILE ROW [OTHER_TILE ...]]    the names of the kernels that have to be the best ones, and there
//
// Buffers have exactly the size needed, weights lie at odd addresses: where a sanitizer looks on, a read or write beside
// them ends the program.

#include "ggml-cpu/sherry/isa.h"
#include "ggml-cpu/sherry/row.h"
#include "ggml-cpu/sherry/tile.h"
#include "ggml-impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(SHERRY_ISA_AMX)
#include <immintrin.h>
#endif

#define CHECK(condition, ...)                                                     \
    if (!(condition)) {                                                           \
        fprintf(stderr, "line %d: %s: ", __LINE__, #condition);                   \
        fprintf(stderr, __VA_ARGS__);                                             \
        fprintf(stderr, "\n");                                                    \
        exit(1);                                                                  \
    }

#define COUNT(array) (sizeof(array)/sizeof((array)[0]))
#define ROWS         SHERRY_TILE_ROWS
#define MAX_BLOCKS   32
#define MAGNITUDE(b) (b%2 ? 5 : 127) // 3*127 = 31*12 + 9 and 3*5 = 15: the largest parts that a sum is looked up in
#define START        1000 // what results are added to

static const char * const names[] = { "generic", "avx2", "avx512", "avx512vbmi", "amx", "neon" };

size_t ggml_row_size(enum ggml_type type, int64_t n) {
    return type == GGML_TYPE_SHERRY ? n/QK_SHERRY*sizeof(block_sherry) :
           type == GGML_TYPE_SHERRY_G32 ? n/QK_SHERRY_G32*sizeof(block_sherry_g32) :
           type == GGML_TYPE_STQ1_0 ? n/QK_STQ1_0*sizeof(block_stq1_0) : 0;
}

//
// types of weights
//

struct type {
    const char * name;

    int    halves; // parts of 128 weights in a block
    size_t block_bytes;
    size_t ops;    // offset in struct ggml_sherry_row_kernel

    size_t  (*quantize)      (const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix);
    void    (*dequantize)    (const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k);
    int64_t (*changed_groups)(const float * x, int64_t k);
    bool    (*validate)      (const void * data, size_t nb);
    void    (*from_sherry)   (block_sherry * x, void * y); // the block of as many SHERRY blocks

    ggml_from_float_t quantize_activations_ref;

    // what ggml's CPU traits have
    ggml_from_float_t from_float;
    ggml_from_float_t quantize_activations;
    ggml_vec_dot_t    vec_dot;
};

static void sherry_from_sherry(block_sherry * x, void * y) {
    memcpy(y, x, sizeof(*x));
}

static void stq1_0_from_sherry(block_sherry * x, void * y) {
    memcpy(x[1].d, x[0].d, sizeof(x->d));
    ggml_stq1_from_sherry(x, y);
}

static const struct type types[] = {
    {
        "SHERRY", 1, sizeof(block_sherry), offsetof(struct ggml_sherry_row_kernel, sherry),
        quantize_sherry, dequantize_row_sherry, ggml_sherry_changed_groups, ggml_validate_sherry, sherry_from_sherry,
        quantize_row_q8_sherry_ref,
        quantize_row_sherry, quantize_row_q8_sherry, ggml_vec_dot_sherry_q8_sherry,
    },
    {
        "STQ1_0", 2, sizeof(block_stq1_0), offsetof(struct ggml_sherry_row_kernel, stq1_0),
        quantize_stq1_0, dequantize_row_stq1_0, ggml_stq1_changed_groups, ggml_validate_stq1_0, stq1_0_from_sherry,
        quantize_row_q8_stq1_0_ref,
        quantize_row_stq1_0, quantize_row_q8_stq1_0, ggml_vec_dot_stq1_0_q8_stq1_0,
    },
};

static const struct ggml_sherry_row_ops * ops_of(const struct ggml_sherry_row_kernel * kernel, const struct type * type) {
    return (const struct ggml_sherry_row_ops *) ((const char *) kernel + type->ops);
}

//
// weights and activations
//

static uint32_t random_bits(void) {
    static uint64_t state = 1;
    state = state*6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (state >> 33);
}

static float random_float(void) {
    return (float) random_bits()/(1u << 30) - 1;
}

// size bytes at an odd address, up to the end of an allocation, which is put into room
static void * at_odd_address(size_t size, char ** room) {
    *room = malloc(size + 1);
    return *room + 1;
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

static int32_t generic_isum(const block_sherry * x, const block_q8_sherry * y) {
    int32_t isum;
    ggml_sherry_row_generic.sherry.isums(QK_SHERRY, &isum, x, y);
    return isum;
}

// What a row times activations, added to start, is, in every kernel and bit for bit: one block after the other, rounded once
// in the product of the scales and once in adding up.
static float expected(float start, int n_blocks, const block_sherry * x, const block_q8_sherry * y) {
    float sum = start;
    for (int b = 0; b < n_blocks; ++b) {
        uint16_t bits;
        memcpy(&bits, x[b].d, sizeof(bits));
        sum = fmaf((float) generic_isum(x + b, y + b), GGML_FP16_TO_FP32(bits)*y[b].d, sum);
    }
    return sum;
}

//
// rows
//

// Blocks of a type with the codes and scales of SHERRY blocks, and activations in the type's order: the sums are those
// of the SHERRY blocks.
static void check_row(const struct type * type, enum kind kind, int r, int t, int n_blocks) {
    const int n = n_blocks*type->halves; // parts of 128 weights
    block_sherry    * sherry = malloc(n*sizeof(*sherry));
    block_q8_sherry * y      = malloc(n*sizeof(*y));
    int32_t         * isums  = malloc(n*sizeof(*isums));
    char * room;
    char * x = at_odd_address(n_blocks*type->block_bytes, &room);
    fill_row(kind, r, n, sherry);
    fill_activations(kind, t, n, y);
    for (int b = 0; b < n_blocks; ++b) {
        type->from_sherry(sherry + b*type->halves, x + b*type->block_bytes);
    }
    const float sum = expected(0, n, sherry, y);
    for (size_t k = 0; k < COUNT(names); ++k) {
        const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
        if (kernel == NULL) {
            continue;
        }
        memset(isums, 0xCC, n*sizeof(*isums));
        ops_of(kernel, type)->isums(n*QK_SHERRY, isums, x, y);
        for (int b = 0; b < n; ++b) {
            const int32_t generic = generic_isum(sherry + b, y + b);
            CHECK(isums[b] == generic, "%s, %s: kind %d, row %d, run %d of %d: %d, not %d", kernel->name, type->name, kind,
                  r, b, n, isums[b], generic);
            if (kind == SAME_CODE && r == (b + 8*t)%32) {
                CHECK(isums[b] == 96*MAGNITUDE(b), "the largest sum, row %d: %d", r, isums[b]);
            }
            if (kind == SAME_CODE && r == (b + 8*t + 16)%32) {
                CHECK(isums[b] == -96*MAGNITUDE(b), "the smallest sum, row %d: %d", r, isums[b]);
            }
        }
        float s, dispatched;
        ops_of(kernel, type)->vec_dot(n*QK_SHERRY, &s, 0, x, 0, y, 0, 1);
        CHECK(s == sum, "%s, %s: kind %d, %d blocks: %a, not %a", kernel->name, type->name, kind, n_blocks, (double) s,
              (double) sum);
        if (kernel == ggml_sherry_best_row_kernel()) {
            type->vec_dot(n*QK_SHERRY, &dispatched, 0, x, 0, y, 0, 1);
            CHECK(s == dispatched, "another kernel is used");
        }
    }
    free(sherry);
    free(y);
    free(isums);
    free(room);
}

//
// activations
//

static void check_quantized(const float * x, int n_blocks) {
    const size_t size = n_blocks*sizeof(block_q8_sherry);
    block_q8_sherry * reference = malloc(size);
    block_q8_sherry * quantized = malloc(size);
    for (size_t i = 0; i < COUNT(types); ++i) {
        const struct type * type = types + i;
        type->quantize_activations_ref(x, reference, n_blocks*QK_SHERRY);
        for (size_t k = 0; k < COUNT(names); ++k) {
            const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
            if (kernel == NULL) {
                continue;
            }
            memset(quantized, 0xCC, size);
            ops_of(kernel, type)->quantize(x, quantized, n_blocks*QK_SHERRY);
            for (int b = 0; b < n_blocks; ++b) {
                CHECK(memcmp(reference + b, quantized + b, sizeof(*quantized)) == 0, "%s, %s: block %d of %d, largest %g",
                      kernel->name, type->name, b, n_blocks, (double) reference[b].d*127);
            }
        }
        memset(quantized, 0xCC, size);
        type->quantize_activations(x, quantized, n_blocks*QK_SHERRY);
        CHECK(memcmp(reference, quantized, size) == 0, "%s by the dispatched kernel", type->name);
    }
    free(reference);
    free(quantized);
}

static void check_activations(void) {
    const float special[] = {
        0, -0.0f, 1e-45f, 1e-40f, nextafterf(0x1p-119f, 0), 0x1p-119f, -0x1p-119f, 1, 127, -3.4e38f,
        INFINITY, -INFINITY, NAN, -NAN,
    };
    for (int n_blocks = 1; n_blocks <= 5; ++n_blocks) {
        for (size_t i = 0; i < COUNT(special); ++i) {
            for (int kind = 0; kind < 4; ++kind) {
                float * x = malloc(n_blocks*QK_SHERRY*sizeof(*x));
                for (int j = 0; j < n_blocks*QK_SHERRY; ++j) {
                    // random, the special value alone, everywhere, among halves (with 127 the scale is 1: ties)
                    x[j] = kind == 0 ? random_float()*5 :
                           kind == 1 ? 0 :
                           kind == 2 ? special[i] : (float) (j%QK_SHERRY) - 63.5f;
                }
                x[random_bits()%(uint32_t) (n_blocks*QK_SHERRY)] = special[i];
                check_quantized(x, n_blocks);
                free(x);
            }
        }
    }
}

//
// tiles
//

// Rows whose blocks are the halves of STQ1_0 blocks twice are packed to the same tile twice.
static void check_pack_stq1_0(const struct ggml_sherry_tile_kernel * kernel, const block_sherry * rows, int n_blocks,
                              const char * tile) {
    char * room;
    block_stq1_0 * halves = at_odd_address(ROWS*2*sizeof(*halves), &room);
    for (int r = 0; r < ROWS; ++r) {
        const block_sherry both[2] = { rows[r*n_blocks], rows[r*n_blocks] };
        ggml_stq1_from_sherry(both, halves + 2*r + 1);
    }
    char * tiles = malloc(2*SHERRY_TILE_BYTES);
    ggml_sherry_pack_stq1_0(kernel, halves + 1, 2, tiles);
    CHECK(memcmp(tiles, tile, SHERRY_TILE_BYTES) == 0, "%s: the first half", kernel->name);
    CHECK(memcmp(tiles + SHERRY_TILE_BYTES, tile, SHERRY_TILE_BYTES) == 0, "%s: the second half", kernel->name);
    free(room);
    free(tiles);
}

// activations of a token, what was made of them, and its results
static void free_token(void * x, const void * tables, const float * d, float * dst) {
    free(x);
    free((void *) tables);
    free((void *) d);
    free(dst);
}

// n_blocks of a row, of which n_planes meet the same activations
static void check_tiles(const struct ggml_sherry_tile_kernel * kernel, enum kind kind, int n_tiles, int n_tokens,
                        int n_blocks, int n_planes, bool first) {
    const size_t stride = (n_blocks + 1)*SHERRY_TILE_BYTES; // more than needed: it has to be used
    const size_t size   = n_tiles*stride - SHERRY_TILE_BYTES;
    char * rows_room;
    char * tiles_room;
    block_sherry * rows = at_odd_address(n_tiles*ROWS*n_blocks*sizeof(*rows), &rows_room);
    char * tiles = at_odd_address(size, &tiles_room);
    memset(tiles, 0xCC, size);

    for (int i = 0; i < n_tiles; ++i) {
        for (int r = 0; r < ROWS; ++r) {
            fill_row(kind, r + i, n_blocks, rows + (i*ROWS + r)*n_blocks);
        }
        for (int b = 0; b < n_blocks; ++b) {
            const block_sherry * from = rows + i*ROWS*n_blocks + b;
            char * tile = tiles + i*stride + b*SHERRY_TILE_BYTES;
            kernel->pack(from, n_blocks, tile);
            check_pack_stq1_0(kernel, from, n_blocks, tile);
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
    const int n_rows = n_tiles*ROWS;
    const int beyond = first; // a float that is to stay what it is, or none, so that a sanitizer sees reads beyond
    for (int t = 0; t < n_tokens; ++t) {
        const int n = n_blocks/n_planes;
        x[t] = malloc(n*sizeof(**x));
        fill_activations(kind, t, n, x[t]);
        char  * table  = aligned_alloc(64, n*kernel->table_bytes);
        float * scales = malloc(n*sizeof(float));
        for (int b = 0; b < n; ++b) {
            kernel->tables(x[t] + b, table + b*kernel->table_bytes);
            scales[b] = x[t][b].d;
        }
        tables[t] = table;
        d[t]      = scales;
        dst[t]    = malloc((n_rows + beyond)*sizeof(float));
        for (int i = 0; i < n_rows + beyond; ++i) {
            dst[t][i] = first && i < n_rows ? NAN : START;
        }
    }

    kernel->mul(n_tiles, stride, tiles, n_blocks, n_planes, n_tokens, tables, d, dst, first, first);

    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_rows; ++r) {
            float sum = first ? 0 : START;
            for (int b = 0; b < n_blocks; ++b) {
                sum = expected(sum, 1, rows + r*n_blocks + b, x[t] + b/n_planes);
            }
            CHECK(dst[t][r] == sum,
                  "%s: kind %d, %d tiles, %d tokens, %d blocks, %d planes, first %d: row %d of token %d: %a, not %a",
                  kernel->name, kind, n_tiles, n_tokens, n_blocks, n_planes, first, r, t, (double) dst[t][r], (double) sum);
        }
        CHECK(!beyond || dst[t][n_rows] == START, "%s: written beyond the rows", kernel->name);
        free_token(x[t], tables[t], d[t], dst[t]);
    }
    free(rows_room);
    free(tiles_room);
}

//
// SHERRY_2P: a row of SHERRY of twice as many blocks
//

static void check_row_2p(enum kind kind, int n_blocks) {
    const int n = n_blocks*QK_SHERRY_2P;
    char * room;
    block_sherry    * x = at_odd_address(SHERRY_2P_PLANES*n_blocks*sizeof(*x), &room);
    block_q8_sherry * y = malloc(n_blocks*sizeof(*y));
    float   * values = malloc(n*sizeof(*values));
    int32_t * isums  = malloc(SHERRY_2P_PLANES*n_blocks*sizeof(*isums));
    for (int b = 0; b < n_blocks; ++b) {
        fill_row(kind, b, SHERRY_2P_PLANES, x + SHERRY_2P_PLANES*b);
    }
    fill_activations(kind, 1, n_blocks, y);
    float sum = 0;
    for (int b = 0; b < SHERRY_2P_PLANES*n_blocks; ++b) {
        sum = expected(sum, 1, x + b, y + b/SHERRY_2P_PLANES);
    }
    for (size_t k = 0; k < COUNT(names); ++k) {
        const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
        float s;
        if (kernel != NULL) {
            kernel->two.vec_dot(n, &s, 0, x, 0, y, 0, 1);
            CHECK(s == sum, "%s: %d blocks of SHERRY_2P", kernel->name, n_blocks);
            kernel->two.isums(n, isums, x, y);
            CHECK(isums[SHERRY_2P_PLANES*n_blocks - 1] == generic_isum(x + SHERRY_2P_PLANES*n_blocks - 1, y + n_blocks - 1),
                  "%s: the last sum of %d blocks of SHERRY_2P", kernel->name, n_blocks);
        }
    }

    // from the weights of two planes to the same, and rounded ones whatever they are
    dequantize_row_sherry_2p(x, values, n);
    block_sherry_2p * again = malloc(n_blocks*sizeof(*again));
    float * found = malloc(n*sizeof(*found));
    quantize_sherry_2p(values, again, 1, n, NULL);
    dequantize_row_sherry_2p(again, found, n);
    if (kind == SCALED) {
        CHECK(ggml_sherry_2p_rounded_weights(values, n) == 0, "two planes were not found");
        CHECK(memcmp(values, found, n*sizeof(*found)) == 0, "two planes became others");
    }
    static const float special[] = { 0, 1e-45f, 3.4e38f, -INFINITY, NAN };
    for (size_t i = 0; i < COUNT(special); ++i) {
        for (int j = 0; j < n; ++j) {
            values[j] = random_float();
        }
        values[n - 1] = special[i];
        quantize_sherry_2p(values, again, 1, n, NULL);
        CHECK(ggml_validate_sherry_2p(again, n_blocks) == (i == 0 || i == 1), "a block with %g", (double) special[i]);
        dequantize_row_sherry_2p(again, found, n);
    }
    free(room);
    free(y);
    free(values);
    free(isums);
    free(again);
    free(found);
}

//
// SHERRY_G32: the codes of SHERRY blocks, and a scale for 32 weights
//

static float scale_of(const uint8_t d[2]) {
    uint16_t bits;
    memcpy(&bits, d, sizeof(bits));
    return GGML_FP16_TO_FP32(bits);
}

static void fill_row_g32(enum kind kind, int r, int n_blocks, block_sherry_g32 * x) {
    const int n = (n_blocks + 3)/4;
    block_sherry * sherry = malloc(n*sizeof(*sherry));
    fill_row(kind, r, n, sherry);
    for (int i = 0; i < n_blocks; ++i) {
        block_sherry_g32 four[4];
        ggml_sherry_g32_split(sherry + i/4, 4, four);
        x[i] = four[i%4];
        const uint16_t d = GGML_FP32_TO_FP16(kind == SCALED ? 0.1f + (float) (random_bits()%1000) : 1);
        memcpy(x[i].d, &d, sizeof(d));
    }
    free(sherry);
}

// the blocks, with scales of their own, and what look-up tables are made of, filled up with zeros
static void fill_activations_g32(enum kind kind, int t, int n_blocks, block_q8_sherry_g32 * y, block_q8_sherry * joined) {
    const int n = (n_blocks + 3)/4;
    fill_activations(kind, t, n, joined);
    for (int i = 0; i < 4*n; ++i) {
        for (int p = 0; p < 4; ++p) {
            int8_t * part = joined[i/4].qs + p*SHERRY_GROUPS + i%4*SHERRY_G32_GROUPS;
            if (i < n_blocks) {
                memcpy(y[i].qs + p*SHERRY_G32_GROUPS, part, SHERRY_G32_GROUPS);
                y[i].d = kind == SCALED ? 0.01f + fabsf(random_float()) : 1;
            } else {
                memset(part, 0, SHERRY_G32_GROUPS);
            }
        }
    }
}

static float expected_g32(float start, int n_blocks, const block_sherry_g32 * x, const block_q8_sherry_g32 * y) {
    float sum = start;
    for (int b = 0; b < n_blocks; ++b) {
        int8_t w[QK_SHERRY_G32];
        int32_t isum = 0;
        ggml_sherry_g32_decode(x + b, w);
        for (int j = 0; j < QK_SHERRY_G32; ++j) {
            isum += w[j]*y[b].qs[j%4*SHERRY_G32_GROUPS + j/4];
        }
        sum = fmaf((float) isum, scale_of(x[b].d)*y[b].d, sum);
    }
    return sum;
}

static void check_row_g32(enum kind kind, int n_blocks) {
    char * room;
    block_sherry_g32    * x = at_odd_address(n_blocks*sizeof(*x), &room);
    block_q8_sherry_g32 * y = malloc(n_blocks*sizeof(*y));
    block_q8_sherry     * joined = malloc((n_blocks + 3)/4*sizeof(*joined));
    float * values = malloc(n_blocks*QK_SHERRY_G32*sizeof(*values));
    fill_row_g32(kind, 3, n_blocks, x);
    fill_activations_g32(kind, 1, n_blocks, y, joined);
    for (size_t k = 0; k < COUNT(names); ++k) {
        const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
        if (kernel == NULL) {
            continue;
        }
        float s;
        kernel->g32.vec_dot(n_blocks*QK_SHERRY_G32, &s, 0, x, 0, y, 0, 1);
        CHECK(s == expected_g32(0, n_blocks, x, y), "%s: %d blocks of SHERRY_G32", kernel->name, n_blocks);
    }
    static const float special[] = { 0, 1e-40f, 0x1p-119f, 127, -3.4e38f, INFINITY, NAN };
    for (size_t i = 0; i < COUNT(special); ++i) {
        for (int j = 0; j < n_blocks*QK_SHERRY_G32; ++j) {
            values[j] = i%2 ? random_float()*5 : (float) (j%QK_SHERRY_G32) - 15.5f;
        }
        values[random_bits()%(uint32_t) (n_blocks*QK_SHERRY_G32)] = special[i];
        block_q8_sherry_g32 * reference = malloc(n_blocks*sizeof(*reference));
        quantize_row_q8_sherry_g32_ref(values, reference, n_blocks*QK_SHERRY_G32);
        for (size_t k = 0; k < COUNT(names); ++k) {
            const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
            if (kernel != NULL) {
                memset(y, 0xCC, n_blocks*sizeof(*y));
                kernel->g32.quantize(values, y, n_blocks*QK_SHERRY_G32);
                CHECK(memcmp(reference, y, n_blocks*sizeof(*y)) == 0, "%s: activations with %g", kernel->name, (double) special[i]);
            }
        }
        free(reference);
    }
    quantize_sherry_g32(values, x, 1, n_blocks*QK_SHERRY_G32, NULL);
    ggml_validate_sherry_g32(x, n_blocks);
    dequantize_row_sherry_g32(x, values, n_blocks*QK_SHERRY_G32);
    free(room);
    free(y);
    free(joined);
    free(values);
}

static void check_tiles_g32(const struct ggml_sherry_tile_kernel * kernel, enum kind kind, int n_tiles, int n_tokens,
                            int n_blocks, bool first) {
    const int    n      = (n_blocks + 3)/4; // of tiles
    const size_t stride = (n + 1)*SHERRY_G32_TILE_BYTES;
    const int    n_rows = n_tiles*ROWS;
    char * rows_room;
    char * tiles_room;
    block_sherry_g32 * rows = at_odd_address(n_rows*n_blocks*sizeof(*rows), &rows_room);
    char * tiles = at_odd_address(n_tiles*stride - SHERRY_G32_TILE_BYTES, &tiles_room);
    memset(tiles, 0xCC, n_tiles*stride - SHERRY_G32_TILE_BYTES);
    for (int r = 0; r < n_rows; ++r) {
        fill_row_g32(kind, r + r/ROWS, n_blocks, rows + r*n_blocks);
    }
    for (int i = 0; i < n_tiles*n; ++i) {
        const int b = i%n, here = n_blocks - 4*b < 4 ? n_blocks - 4*b : 4;
        const block_sherry_g32 * from = rows + i/n*ROWS*n_blocks + 4*b;
        char * tile = tiles + i/n*stride + b*SHERRY_G32_TILE_BYTES;
        ggml_sherry_pack_g32(kernel, from, n_blocks, here, tile);
        block_sherry_g32 back[ROWS][4];
        ggml_sherry_unpack_g32(kernel, tile, here, back[0], 4);
        for (int r = 0; r < ROWS; ++r) {
            CHECK(memcmp(back[r], from + r*n_blocks, here*sizeof(**back)) == 0, "%s: row %d of SHERRY_G32", kernel->name, r);
        }
    }
    block_q8_sherry_g32 * x[SHERRY_MAX_TOKENS];
    const void  * tables[SHERRY_MAX_TOKENS];
    const float * d[SHERRY_MAX_TOKENS];
    float       * dst[SHERRY_MAX_TOKENS];
    for (int t = 0; t < n_tokens; ++t) {
        block_q8_sherry * joined = malloc(n*sizeof(*joined));
        x[t] = malloc(n_blocks*sizeof(**x));
        fill_activations_g32(kind, t, n_blocks, x[t], joined);
        char  * table  = aligned_alloc(64, n*kernel->table_bytes);
        float * scales = calloc(4*n, sizeof(float));
        for (int b = 0; b < n; ++b) {
            kernel->tables_g32(joined + b, table + b*kernel->table_bytes);
        }
        for (int b = 0; b < n_blocks; ++b) {
            scales[b] = x[t][b].d;
        }
        free(joined);
        tables[t] = table;
        d[t]      = scales;
        dst[t]    = malloc(n_rows*sizeof(float));
        for (int i = 0; i < n_rows; ++i) {
            dst[t][i] = first ? NAN : START;
        }
    }
    kernel->mul_g32(n_tiles, stride, tiles, n, 1, n_tokens, tables, d, dst, first, first);
    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_rows; ++r) {
            const float sum = expected_g32(first ? 0 : START, n_blocks, rows + r*n_blocks, x[t]);
            CHECK(dst[t][r] == sum, "%s, SHERRY_G32: kind %d, %d tiles, %d tokens, %d blocks, first %d: row %d of token %d: "
                  "%a, not %a", kernel->name, kind, n_tiles, n_tokens, n_blocks, first, r, t, (double) dst[t][r], (double) sum);
        }
        free_token(x[t], tables[t], d[t], dst[t]);
    }
    free(rows_room);
    free(tiles_room);
}

//
// many tokens
//

// Registers of a matrix unit are configured by whoever has used them before in this thread, and stay so.
#if defined(SHERRY_ISA_AMX)
static const uint8_t configs[][64] = { { 0 }, { 1, [16] = 32, [18] = 64, [48] = 3, [49] = 16 } };
#endif

static void mul_many(const struct ggml_sherry_many * many, int n_tiles, size_t stride, const void * tiles, int n_blocks,
                     int n_planes, int n_scales, int n_tokens, const void * strips, float * const * dst) {
#if defined(SHERRY_ISA_AMX)
    const uint8_t * config = configs[random_bits()%2];
    uint8_t kept[64];
    _tile_loadconfig(config);
    many->mul(n_tiles, stride, tiles, n_blocks, n_planes, n_scales, n_tokens, strips, dst);
    memset(kept, 0xCC, sizeof(kept));
    _tile_storeconfig(kept);
    _tile_release();
    CHECK(memcmp(kept, config, sizeof(kept)) == 0, "the matrix unit is left configured otherwise than it was");
#else
    many->mul(n_tiles, stride, tiles, n_blocks, n_planes, n_scales, n_tokens, strips, dst);
#endif
}

// The product of tiles and x[token*n + block], whose scales are d[n_scales*(token*n + block)], n blocks of a token. Results
// of each token end where its memory does.
static void multiply_many(const struct ggml_sherry_many * many, int n_tiles, size_t stride, const void * tiles, int n_blocks,
                          int n_planes, int n_scales, int n_tokens, const block_q8_sherry * x, const float * d, float ** dst) {
    const int n = n_blocks/n_planes, n_strips = (n_tokens + SHERRY_STRIP_TOKENS - 1)/SHERRY_STRIP_TOKENS;
    char * strips = aligned_alloc(64, n*n_strips*SHERRY_STRIP_BYTES(n_scales));
    memset(strips, 0xCC, n*n_strips*SHERRY_STRIP_BYTES(n_scales));
    for (int i = 0; i < n*n_strips; ++i) {
        const int b = i/n_strips, first = i%n_strips*SHERRY_STRIP_TOKENS;
        const int here = n_tokens - first < SHERRY_STRIP_TOKENS ? n_tokens - first : SHERRY_STRIP_TOKENS;
        const block_q8_sherry * of_tokens[SHERRY_STRIP_TOKENS];
        const float           * scales[SHERRY_STRIP_TOKENS];
        for (int t = 0; t < here; ++t) {
            of_tokens[t] = x + (first + t)*n + b;
            scales[t]    = d + ((first + t)*n + b)*n_scales;
        }
        many->arrange(of_tokens, scales, n_scales, here, strips + i*SHERRY_STRIP_BYTES(n_scales));
    }
    for (int t = 0; t < n_tokens; ++t) {
        dst[t] = malloc(n_tiles*ROWS*sizeof(float));
        memset(dst[t], 0xFF, n_tiles*ROWS*sizeof(float)); // NaN
    }
    mul_many(many, n_tiles, stride, tiles, n_blocks, n_planes, n_scales, n_tokens, strips, dst);
    free(strips);
}

// With 128 tokens, each of which has one activation, the results are the weights.
static void check_decoded(const struct ggml_sherry_tile_kernel * kernel) {
    block_sherry rows[ROWS];
    char tile[SHERRY_TILE_BYTES];
    for (int r = 0; r < ROWS; ++r) {
        fill_row(SCALED, r, 1, rows + r);
        set_scale(rows + r, 1);
    }
    kernel->pack(rows, 1, tile);

    block_q8_sherry * x = calloc(QK_SHERRY, sizeof(*x));
    float   d[QK_SHERRY];
    float * dst[QK_SHERRY];
    for (int t = 0; t < QK_SHERRY; ++t) {
        x[t].qs[t%4*SHERRY_GROUPS + t/4] = 1;
        d[t] = 1;
    }
    multiply_many(kernel->many, 1, sizeof(tile), tile, 1, 1, 1, QK_SHERRY, x, d, dst);
    for (int r = 0; r < ROWS; ++r) {
        int8_t w[QK_SHERRY];
        ggml_sherry_decode(rows + r, w);
        for (int t = 0; t < QK_SHERRY; ++t) {
            CHECK(dst[t][r] == w[t], "%s: row %d, weight %d: %g, not %d", kernel->name, r, t, (double) dst[t][r], w[t]);
        }
    }
    for (int t = 0; t < QK_SHERRY; ++t) {
        free(dst[t]);
    }
    free(x);
}

static void check_many(const struct ggml_sherry_tile_kernel * kernel, enum kind kind, int n_tiles, int n_tokens, int n_blocks,
                       int n_planes) {
    const int n = n_blocks/n_planes, n_rows = n_tiles*ROWS;
    const size_t stride = (n_blocks + 1)*SHERRY_TILE_BYTES;
    char * rows_room;
    char * tiles_room;
    block_sherry * rows = at_odd_address(n_rows*n_blocks*sizeof(*rows), &rows_room);
    char * tiles = at_odd_address(n_tiles*stride - SHERRY_TILE_BYTES, &tiles_room);
    for (int r = 0; r < n_rows; ++r) {
        fill_row(kind, r + r/ROWS, n_blocks, rows + r*n_blocks);
    }
    for (int i = 0; i < n_tiles*n_blocks; ++i) {
        kernel->pack(rows + i/n_blocks*ROWS*n_blocks + i%n_blocks, n_blocks,
                     tiles + i/n_blocks*stride + i%n_blocks*SHERRY_TILE_BYTES);
    }
    block_q8_sherry * x = malloc(n_tokens*n*sizeof(*x));
    float  * d   = malloc(n_tokens*n*sizeof(*d));
    float ** dst = malloc(n_tokens*sizeof(*dst));
    for (int t = 0; t < n_tokens; ++t) {
        fill_activations(kind, t, n, x + t*n);
        for (int b = 0; b < n; ++b) {
            d[t*n + b] = x[t*n + b].d;
        }
    }
    multiply_many(kernel->many, n_tiles, stride, tiles, n_blocks, n_planes, 1, n_tokens, x, d, dst);
    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_rows; ++r) {
            float sum = 0;
            for (int b = 0; b < n_blocks; ++b) {
                sum = expected(sum, 1, rows + r*n_blocks + b, x + t*n + b/n_planes);
            }
            CHECK(dst[t][r] == sum, "%s: kind %d, %d tiles, %d tokens, %d blocks, %d planes: row %d of token %d: %a, not %a",
                  kernel->name, kind, n_tiles, n_tokens, n_blocks, n_planes, r, t, (double) dst[t][r], (double) sum);
        }
        free(dst[t]);
    }
    free(rows_room);
    free(tiles_room);
    free(x);
    free(d);
    free(dst);
}

static void check_many_g32(const struct ggml_sherry_tile_kernel * kernel, enum kind kind, int n_tiles, int n_tokens,
                           int n_blocks) {
    const int    n = (n_blocks + 3)/4, n_rows = n_tiles*ROWS; // of tiles
    const size_t stride = n*SHERRY_G32_TILE_BYTES;
    block_sherry_g32 * rows = malloc(n_rows*n_blocks*sizeof(*rows));
    char * tiles = malloc(n_tiles*stride);
    for (int r = 0; r < n_rows; ++r) {
        fill_row_g32(kind, r + r/ROWS, n_blocks, rows + r*n_blocks);
    }
    for (int i = 0; i < n_tiles*n; ++i) {
        const int b = i%n, here = n_blocks - 4*b < 4 ? n_blocks - 4*b : 4;
        ggml_sherry_pack_g32(kernel, rows + i/n*ROWS*n_blocks + 4*b, n_blocks, here,
                             tiles + i/n*stride + b*SHERRY_G32_TILE_BYTES);
    }
    block_q8_sherry_g32 * x = malloc(n_tokens*n_blocks*sizeof(*x));
    block_q8_sherry * joined = malloc(n_tokens*n*sizeof(*joined));
    float  * d   = calloc(n_tokens*n*4, sizeof(*d));
    float ** dst = malloc(n_tokens*sizeof(*dst));
    for (int t = 0; t < n_tokens; ++t) {
        fill_activations_g32(kind, t, n_blocks, x + t*n_blocks, joined + t*n);
        for (int b = 0; b < n_blocks; ++b) {
            d[t*n*4 + b] = x[t*n_blocks + b].d;
        }
    }
    multiply_many(kernel->many, n_tiles, stride, tiles, n, 1, SHERRY_G32_SCALES, n_tokens, joined, d, dst);
    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_rows; ++r) {
            const float sum = expected_g32(0, n_blocks, rows + r*n_blocks, x + t*n_blocks);
            CHECK(dst[t][r] == sum, "%s, SHERRY_G32: kind %d, %d tiles, %d tokens, %d blocks: row %d of token %d: %a, not %a",
                  kernel->name, kind, n_tiles, n_tokens, n_blocks, r, t, (double) dst[t][r], (double) sum);
        }
        free(dst[t]);
    }
    free(rows);
    free(tiles);
    free(x);
    free(joined);
    free(d);
    free(dst);
}

static void check_many_tokens(const struct ggml_sherry_tile_kernel * kernel) {
    static const int n_tokens[] = { 1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128 };
    check_decoded(kernel);
    for (int kind = 0; kind < N_KINDS; ++kind) {
        for (size_t i = 0; i < COUNT(n_tokens); ++i) {
            const int n_tiles = n_tokens[i] < 32 ? 3 : 1;
            check_many(kernel, kind, n_tiles, n_tokens[i], 1 + (int) i%3, 1);
            check_many(kernel, kind, n_tiles, n_tokens[i], 2 + 2*((int) i%2), SHERRY_2P_PLANES);
            check_many_g32(kernel, kind, n_tiles, n_tokens[i], 1 + (int) i%6);
        }
        check_many(kernel, kind, 2, 20, MAX_BLOCKS, 1);
    }
}

//
// quantizers and what reads blocks
//

// One of the weights is special. Blocks of any bytes can be read.
static void check_type(const struct type * type, int n_blocks, float special) {
    const int    n    = n_blocks*type->halves*QK_SHERRY;
    const size_t size = n_blocks*type->block_bytes;
    float           * w = malloc(n*sizeof(*w));
    block_q8_sherry * y = malloc(n/QK_SHERRY*sizeof(*y));
    int32_t * isums[2]  = { malloc(n/QK_SHERRY*sizeof(int32_t)), malloc(n/QK_SHERRY*sizeof(int32_t)) };
    char * room;
    char * x = at_odd_address(size, &room);
    for (int i = 0; i < n; ++i) {
        w[i] = random_float()/2;
    }
    w[n - 1] = special;
    type->quantize(w, x, 1, n, w);
    type->validate(x, n_blocks);
    type->changed_groups(w, n);
    type->from_float(w, x, n);
    check_quantized(w, n/QK_SHERRY);
    type->quantize_activations(w, y, n);

    float s;
    ops_of(&ggml_sherry_row_generic, type)->isums(n, isums[0], x, y);
    for (size_t k = 0; k < COUNT(names); ++k) {
        const struct ggml_sherry_row_kernel * kernel = ggml_sherry_row_kernel_named(names[k]);
        if (kernel != NULL) {
            memset(isums[1], 0xCC, n/QK_SHERRY*sizeof(int32_t));
            ops_of(kernel, type)->isums(n, isums[1], x, y);
            CHECK(memcmp(isums[0], isums[1], n/QK_SHERRY*sizeof(int32_t)) == 0, "%s, %s: with weight %g", kernel->name,
                  type->name, (double) special);
            ops_of(kernel, type)->vec_dot(n, &s, 0, x, 0, y, 0, 1);
        }
    }
    type->vec_dot(n, &s, 0, x, 0, y, 0, 1);
    memset(x, 0xFF, size);
    type->dequantize(x, w, n);
    free(w);
    free(y);
    free(isums[0]);
    free(isums[1]);
    free(room);
}

int main(int argc, char ** argv) {
    const struct ggml_sherry_tile_kernel * best_tile = ggml_sherry_tile_kernel_at(0);
    const struct ggml_sherry_row_kernel  * best_row  = ggml_sherry_best_row_kernel();
    CHECK(argc < 3 || strcmp(best_tile->name, argv[1]) == 0, "the first kernel for tiles is %s", best_tile->name);
    CHECK(argc < 3 || strcmp(best_row->name,  argv[2]) == 0, "rows are multiplied by %s",  best_row->name);

    for (int i = 3; i < argc; ++i) {
        const struct ggml_sherry_tile_kernel * kernel = ggml_sherry_tile_kernel_named(argv[i]);
        CHECK(kernel != NULL, "there is no kernel %s of tiles", argv[i]);
        CHECK(kernel->many == NULL || kernel->many->allowed(), "the system does not allow %s", argv[i]);
    }

    static const float special[] = { 0, 1e-45f, 3.4e38f, -INFINITY, NAN };
    for (size_t i = 0; i < COUNT(types)*COUNT(special); ++i) {
        check_type(types + i%COUNT(types), 1, special[i/COUNT(types)]);
        check_type(types + i%COUNT(types), 5, special[i/COUNT(types)]);
    }
    check_activations();

    static const int lengths[] = { 1, 3, 5, MAX_BLOCKS };
    for (int kind = 0; kind < N_KINDS; ++kind) {
        for (size_t i = 0; i < COUNT(lengths); ++i) {
            check_row_g32(kind, lengths[i]);
            check_row_2p(kind, lengths[i]);
            for (int r = 0; r < 32; ++r) {
                check_row(types + 0, kind, r, r%4, lengths[i]);
                check_row(types + 1, kind, r, r%4, lengths[i]);
            }
            for (size_t k = 0; k < COUNT(names); ++k) {
                const struct ggml_sherry_tile_kernel * kernel = ggml_sherry_tile_kernel_named(names[k]);
                for (int n_tiles = 1; kernel && n_tiles <= kernel->max_tiles; ++n_tiles) {
                    for (int n_tokens = 1; n_tokens <= SHERRY_MAX_TOKENS; ++n_tokens) {
                        check_tiles_g32(kernel, kind, n_tiles, n_tokens, lengths[i], i%2);
                        check_tiles(kernel, kind, n_tiles, n_tokens, lengths[i], 1, true);
                        check_tiles(kernel, kind, n_tiles, n_tokens, lengths[i], 1, false);
                        if (lengths[i] < MAX_BLOCKS) {
                            check_tiles(kernel, kind, n_tiles, n_tokens, 2*lengths[i], SHERRY_2P_PLANES, i%2);
                        }
                    }
                }
            }
        }
    }
    for (size_t k = 0; k < COUNT(names); ++k) {
        const struct ggml_sherry_tile_kernel * kernel = ggml_sherry_tile_kernel_named(names[k]);
        if (kernel != NULL && kernel->many != NULL && kernel->many->allowed()) {
            check_many_tokens(kernel);
        }
    }
    puts("ok");
    return 0;
}
