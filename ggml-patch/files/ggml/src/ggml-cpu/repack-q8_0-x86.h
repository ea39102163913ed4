#pragma once

// Q8_0 on x86, for repack.cpp: 16 rows side by side, so that a row's sums stay in a lane. Read row by row, with a sum across
// the register for each row, the matrix that makes logits comes from memory at half of the rate that memory has.
//
// A tile is block_q8_0x16: the scales of the 16 rows, then weights 0..3 of each row, weights 4..7 of each row, and so on.
// Activations are those that repack.cpp makes for an interleave of 8, four tokens in a block_q8_0x4, or a row of block_q8_0.
//
// Whatever the instructions, a result is from 0, block after block, fma(sum of the block, scale of the row * scale of the
// activations, result so far). Sums are exact.

#include "repack.h"

// FMA and F16C are sets of their own; MSVC takes them for a part of AVX2
#if defined(__AVX2__) && (defined(_MSC_VER) || (defined(__FMA__) && defined(__F16C__)))
#define GGML_REPACK_Q8_0_X86

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ggml::cpu::repack_q8_0_x86 {

constexpr int ROWS  = 16;
constexpr int QUADS = QK8_0/4; // of a block: four weights of each row, with four activations
constexpr int AHEAD = 8*sizeof(block_q8_0x16); // processors do not see far enough ahead by themselves

static inline float to_float(ggml_half x) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x)));
}

// What is multiplied with a tile at once: quad j of block b of token t, and the scale of the block.
struct one_token {
    static constexpr int N = 1;

    const block_q8_0 * blocks;

    const int8_t * quad(int b, int, int j) const { return blocks[b].qs + 4*j; }
    float scale(int b, int) const { return to_float(blocks[b].d); }
};

struct four_tokens {
    static constexpr int N = 4;

    const block_q8_0x4 * blocks;

    const int8_t * quad(int b, int t, int j) const { return blocks[b].qs + 32*(j/2) + 8*t + 4*(j%2); }
    float scale(int b, int t) const { return to_float(blocks[b].d[t]); }
};

static inline int32_t load_quad(const int8_t * p) {
    int32_t quad;
    memcpy(&quad, p, sizeof(quad));
    return quad;
}

// the block of a tile that comes so much later; as an integer, because a pointer must not leave its array
static inline void prefetch(const block_q8_0x16 * block) {
    for (size_t i = 0; i < sizeof(*block); i += 64) {
        _mm_prefetch((const char *) ((uintptr_t) block + AHEAD + i), _MM_HINT_T0);
    }
}

#if defined(__AVX512F__) && defined(__AVX512VNNI__)

// vpdpbusd wants one factor unsigned: weights get 128 more, and the sums begin with -128 times the activations.
static inline void begin(const one_token & x, int b, __m512i * sums) {
    __m512i bias = _mm512_setzero_si512();
    for (int j = 0; j < QUADS; ++j) {
        bias = _mm512_dpbusd_epi32(bias, _mm512_set1_epi8((char) 0x80), _mm512_set1_epi32(load_quad(x.quad(b, 0, j))));
    }
    sums[0] = _mm512_sub_epi32(_mm512_setzero_si512(), bias);
}

static inline void begin(const four_tokens & x, int b, __m512i * sums) {
    // two dwords of each token, four times
    __m512i bias = _mm512_setzero_si512();
    for (int i = 0; i < 2; ++i) {
        bias = _mm512_dpbusd_epi32(bias, _mm512_set1_epi8((char) 0x80), _mm512_loadu_si512(x.blocks[b].qs + 64*i));
    }
    const __m256i twice = _mm256_add_epi32(_mm512_castsi512_si256(bias), _mm512_extracti64x4_epi64(bias, 1));
    int32_t of_tokens[8]; // 0, 1, the same again, 2, 3, the same again
    _mm256_storeu_si256((__m256i *) of_tokens, _mm256_hadd_epi32(twice, twice));
    for (int t = 0; t < 4; ++t) {
        sums[t] = _mm512_set1_epi32(-of_tokens[t/2*4 + t%2]);
    }
}

template <typename X>
static inline void multiply_tile(int n_blocks, const block_q8_0x16 * tile, const X & x, float * s, size_t bs, bool is_far) {
    __m512 results[X::N];
    for (int t = 0; t < X::N; ++t) {
        results[t] = _mm512_setzero_ps();
    }
    for (int b = 0; b < n_blocks; ++b) {
        if (is_far) {
            prefetch(tile + b);
        }
        __m512i sums[X::N];
        begin(x, b, sums);
        for (int j = 0; j < QUADS; ++j) {
            const int8_t * weights = tile[b].qs + 4*ROWS*j;
            const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(weights), _mm512_set1_epi8((char) 0x80));
            for (int t = 0; t < X::N; ++t) {
                sums[t] = _mm512_dpbusd_epi32(sums[t], w, _mm512_set1_epi32(load_quad(x.quad(b, t, j))));
            }
        }
        const __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) tile[b].d));
        for (int t = 0; t < X::N; ++t) {
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale(b, t)));
            results[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t]), scale, results[t]);
        }
    }
    for (int t = 0; t < X::N; ++t) {
        _mm512_storeu_ps(s + t*bs, results[t]);
    }
}

#else

// sum + w*x, four bytes to a dword. One factor is unsigned: it is |w|, and x takes its sign. -128 is 128 then; 2*128*127
// still fits 16 bits.
static inline __m256i add_products(__m256i sum, __m256i w, __m256i x) {
    const __m256i abs_w = _mm256_sign_epi8(w, w);
    x = _mm256_sign_epi8(x, w);
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, abs_w, x);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(abs_w, x), _mm256_set1_epi16(1)));
#endif
}

template <typename X>
static inline void multiply_tile(int n_blocks, const block_q8_0x16 * tile, const X & x, float * s, size_t bs, bool is_far) {
    __m256 results[2][X::N];
    for (int t = 0; t < X::N; ++t) {
        results[0][t] = results[1][t] = _mm256_setzero_ps();
    }
    for (int b = 0; b < n_blocks; ++b) {
        if (is_far) {
            prefetch(tile + b);
        }
        for (int half = 0; half < 2; ++half) { // of the rows
            __m256i sums[X::N];
            for (int t = 0; t < X::N; ++t) {
                sums[t] = _mm256_setzero_si256();
            }
            for (int j = 0; j < QUADS; ++j) {
                const int8_t * weights = tile[b].qs + 4*ROWS*j;
                const __m256i w = _mm256_loadu_si256((const __m256i *) weights + half);
                for (int t = 0; t < X::N; ++t) {
                    sums[t] = add_products(sums[t], w, _mm256_set1_epi32(load_quad(x.quad(b, t, j))));
                }
            }
            const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) tile[b].d + half));
            for (int t = 0; t < X::N; ++t) {
                const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scale(b, t)));
                results[half][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[t]), scale, results[half][t]);
            }
        }
    }
    for (int t = 0; t < X::N; ++t) {
        _mm256_storeu_ps(s + t*bs,     results[0][t]);
        _mm256_storeu_ps(s + t*bs + 8, results[1][t]);
    }
}

#endif

// n_rows rows, a multiple of 16, of n_blocks blocks, one after the other as in a file, to tiles
static inline void repack(int64_t n_rows, int64_t n_blocks, const block_q8_0 * rows, block_q8_0x16 * tiles) {
    for (int64_t row = 0; row < n_rows; row += ROWS) {
        for (int64_t b = 0; b < n_blocks; ++b, ++tiles) {
            for (int r = 0; r < ROWS; ++r) {
                const block_q8_0 * block = rows + (row + r)*n_blocks + b;
                tiles->d[r] = block->d;
                for (int j = 0; j < QUADS; ++j) {
                    memcpy(tiles->qs + 4*(ROWS*j + r), block->qs + 4*j, 4);
                }
            }
        }
    }
}

// n weights of nc rows, with one token
static inline void gemv(int n, float * s, const void * tiles, const void * x, int nc) {
    const int n_blocks = n/QK8_0;
    for (int row = 0; row < nc; row += ROWS) {
        const auto * tile = (const block_q8_0x16 *) tiles + (size_t) row/ROWS*n_blocks;
        multiply_tile(n_blocks, tile, one_token{ (const block_q8_0 *) x }, s + row, 0, true);
    }
}

// with nr tokens, a multiple of 4, whose results are bs floats apart. A tile stays in the cache for all of them.
static inline void gemm(int n, float * s, size_t bs, const void * tiles, const void * x, int nr, int nc) {
    const int n_blocks = n/QK8_0;
    for (int row = 0; row < nc; row += ROWS) {
        const auto * tile = (const block_q8_0x16 *) tiles + (size_t) row/ROWS*n_blocks;
        for (int t = 0; t < nr; t += 4) {
            const four_tokens tokens{ (const block_q8_0x4 *) x + (size_t) t/4*n_blocks };
            multiply_tile(n_blocks, tile, tokens, s + t*bs + row, bs, t == 0);
        }
    }
}

}  // namespace ggml::cpu::repack_q8_0_x86

#endif
