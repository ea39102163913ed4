// The loops that the benches time; limits.py compiles them for this machine. A loop runs in every thread at once:
// it waits until all are there, and notes when it began and ended.

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef struct {
    double begin, end; // seconds
    int *  ready;      // threads that are there, shared
    int    threads;
} span;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9*(double) t.tv_nsec;
}

static void begin(span * s) {
    __atomic_add_fetch(s->ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(s->ready, __ATOMIC_ACQUIRE) < s->threads) {
        sched_yield(); // there may be more threads than cores
    }
    s->begin = now();
}

//
// limits
//

// 4*n words, in four places at once: one alone does not keep enough requests under way
uint64_t read_memory(span * s, const uint64_t * data, size_t n) {
    begin(s);
    uint64_t sum = 0;
    for (size_t i = 0; i < n; ++i) {
        sum += data[i] + data[n + i] + data[2*n + i] + data[3*n + i];
    }
    s->end = now();
    return sum;
}

// DOT: sums of products of int8 in 32 bits, exact for every input but unsigned operands where the machine wants one
#if defined(__AVX512VNNI__)
#define NAME "512-bit vpdpbusd"
#define VECTOR __m512i
#define ANY(x) __asm__ volatile("" : "+v"(x))
#define DOT(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#define SUM(sum) _mm512_reduce_add_epi32(sum)
#elif defined(__AVX512BW__)
#define NAME "512-bit vpmaddubsw and vpmaddwd"
#define VECTOR __m512i
#define ANY(x) __asm__ volatile("" : "+v"(x))
#define DOT(sum, a, b) _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)))
#define SUM(sum) _mm512_reduce_add_epi32(sum)
#elif defined(__AVX2__)
#define VECTOR __m256i
#define ANY(x) __asm__ volatile("" : "+x"(x))
#if defined(__AVXVNNI__)
#define NAME "256-bit vpdpbusd"
#define DOT(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#else
#define NAME "256-bit vpmaddubsw and vpmaddwd"
#define DOT(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#endif
#define SUM(sum) _mm_cvtsi128_si32(_mm256_castsi256_si128(sum))
#elif defined(__ARM_FEATURE_DOTPROD)
#define NAME "128-bit sdot"
#define VECTOR int8x16_t
#define SUMS int32x4_t
#define ANY(x) __asm__ volatile("" : "+w"(x))
#define DOT(sum, a, b) vdotq_s32(sum, a, b)
#define SUM(sum) vgetq_lane_s32(sum, 0)
#elif defined(__ARM_NEON)
#define NAME "128-bit smull and sadalp"
#define VECTOR int8x16_t
#define SUMS int32x4_t
#define ANY(x) __asm__ volatile("" : "+w"(x))
#define DOT(sum, a, b) \
    vpadalq_s16(vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_s8(vget_high_s8(a), vget_high_s8(b)))
#define SUM(sum) vgetq_lane_s32(sum, 0)
#else
#define NAME "plain C"
#define VECTOR int32_t
#define ANY(x) __asm__ volatile("" : "+r"(x))
#define DOT(sum, a, b) ((sum) + (int8_t) (a)*(int8_t) (b))
#define SUM(sum) (sum)
#define LANES 1
#endif

#ifndef SUMS
#define SUMS VECTOR
#endif
#ifndef LANES
#define LANES ((int) sizeof(VECTOR))
#endif

const char * int8_name(void) {
    return NAME;
}

#define CHAINS 8 // products that do not wait for each other: the longest instruction takes 5 cycles, two begin in one

int int8_lanes(void) {
    return CHAINS*LANES; // products of one turn of the loop
}

// by itself, so that nothing else wants the registers
static __attribute__((noinline)) int products(int turns) {
    static const int8_t three[64] = { 3, 3, 3, 3 };
    VECTOR a, b;
    memcpy(&a, three, sizeof(a));
    memcpy(&b, three, sizeof(b));
    SUMS none = { 0 };
    ANY(b);
    ANY(none);
    SUMS s0 = none, s1 = none, s2 = none, s3 = none, s4 = none, s5 = none, s6 = none, s7 = none;
    // after ANY the compiler may not assume that a product is the same as the one before
#define STEP(sum) ANY(a); sum = DOT(sum, a, b);
    for (int i = 0; i < turns; ++i) {
        STEP(s0) STEP(s1) STEP(s2) STEP(s3) STEP(s4) STEP(s5) STEP(s6) STEP(s7)
    }
    // nor that nobody looks at the sums
    ANY(s0); ANY(s1); ANY(s2); ANY(s3); ANY(s4); ANY(s5); ANY(s6); ANY(s7);
    return SUM(s0) + SUM(s1) + SUM(s2) + SUM(s3) + SUM(s4) + SUM(s5) + SUM(s6) + SUM(s7);
}

int int8_products(span * s, int turns) {
    begin(s);
    const int sum = products(turns);
    s->end = now();
    return sum;
}

//
// kernels: a matrix times a few columns of activations, as ggml's matrix product calls them
//

#define CHUNK 16 // rows that stay in the first-level cache while they meet all columns

typedef void (*vec_dot_t)(int, float *, size_t, const void *, size_t, const void *, size_t, int);

// dst[columns][rows]
void multiply_rows(span * s, vec_dot_t vec_dot, int n, int rows, size_t row_bytes, const char * x,
                   int columns, size_t column_bytes, const char * y, float * dst, int repeat) {
    begin(s);
    for (int i = 0; i < repeat; ++i) {
        for (int first = 0; first < rows; first += CHUNK) {
            const int last = first + CHUNK < rows ? first + CHUNK : rows;
            for (int c = 0; c < columns; ++c) {
                for (int r = first; r < last; ++r) {
                    vec_dot(n, dst + (size_t) c*rows + r, 0, x + r*row_bytes, 0, y + c*column_bytes, 0, 1);
                }
            }
        }
    }
    s->end = now();
}

#define TILE_ROWS   32
#define MAX_COLUMNS 4  // of one call
#define RUN_BLOCKS  16 // of more columns: blocks that meet all of them while they are in a cache

typedef void (*mul_t)(int, size_t, const void *, int, int, int, const void * const *, const float * const *, float * const *, bool, bool);

// tables[columns][blocks], dst[columns][tiles*TILE_ROWS]; scales are those of the blocks' activations
void multiply_tiles(span * s, mul_t mul, int max_tiles, int blocks, int tiles, size_t tile_bytes, const char * x,
                    int columns, size_t table_bytes, const char * tables, const float * scales, float * dst, int repeat) {
    const size_t stride = (size_t) blocks*tile_bytes;
    const int    run    = columns > MAX_COLUMNS ? RUN_BLOCKS : blocks;
    begin(s);
    for (int i = 0; i < repeat; ++i) {
        for (int block = 0; block < blocks; block += run) {
            const int n_blocks = block + run < blocks ? run : blocks - block;
            for (int tile = 0; tile < tiles; tile += max_tiles) {
                const int n_tiles = tile + max_tiles < tiles ? max_tiles : tiles - tile;
                for (int c = 0; c < columns; c += MAX_COLUMNS) {
                    const int n = c + MAX_COLUMNS < columns ? MAX_COLUMNS : columns - c;
                    const void *  of_columns[MAX_COLUMNS];
                    const float * d[MAX_COLUMNS];
                    float *       out[MAX_COLUMNS];
                    for (int j = 0; j < n; ++j) {
                        of_columns[j] = tables + ((size_t) (c + j)*blocks + block)*table_bytes;
                        d[j]   = scales + (size_t) (c + j)*blocks + block;
                        out[j] = dst + ((size_t) (c + j)*tiles + tile)*TILE_ROWS;
                    }
                    mul(n_tiles, stride, x + tile*stride + block*tile_bytes, n_blocks, 1, n, of_columns, d, out,
                        block == 0, c == 0);
                }
            }
        }
    }
    s->end = now();
}

#define PANEL 128 // columns of one call of a unit for many tokens, in strips of 16

typedef void (*mul_many_t)(int, size_t, const void *, int, int, int, int, const void *, float * const *);

// strips[panels][blocks][16 columns], strip_bytes each; dst as above
void multiply_strips(span * s, mul_many_t mul, int blocks, int tiles, size_t tile_bytes, const char * x, int columns,
                     size_t strip_bytes, const char * strips, float * dst, int repeat) {
    begin(s);
    for (int i = 0; i < repeat; ++i) {
        for (int first = 0; first < columns; first += PANEL) {
            const int n = first + PANEL < columns ? PANEL : columns - first;
            float * out[PANEL];
            for (int j = 0; j < n; ++j) {
                out[j] = dst + (size_t) (first + j)*tiles*TILE_ROWS;
            }
            mul(tiles, (size_t) blocks*tile_bytes, x, blocks, 1, 1, n, strips + (size_t) first/16*blocks*strip_bytes, out);
        }
    }
    s->end = now();
}

typedef void (*tables_t)(const void *, void *);

// the tables of all columns, once for a matrix
void make_tables(span * s, tables_t make, int blocks, int columns, size_t x_bytes, const char * x, size_t table_bytes,
                 char * tables, int repeat) {
    begin(s);
    for (int i = 0; i < repeat; ++i) {
        for (size_t j = 0; j < (size_t) columns*blocks; ++j) {
            make(x + j*x_bytes, tables + j*table_bytes);
        }
    }
    s->end = now();
}
