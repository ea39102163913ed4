// For bench_kernels.py: STQ1_0 as its public AVX2 kernel is described, one block of 256 weights at a time, its sum added
// up across the register and scaled before the next one begins. Activations are ggml's Q8_K.

#if defined(__AVX2__) && defined(__F16C__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t  qs[32];
    uint8_t  sign[8];
    uint16_t d;
} stq1_block;

typedef struct {
    float   d;
    int8_t  qs[256];
    int16_t bsums[16]; // of 16 activations each
} q8_block;

#define TABLE(...) _mm256_broadcastsi128_si256(_mm_setr_epi8(__VA_ARGS__))

static inline int32_t sum_of_lanes(__m256i v) {
    __m128i r = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, _MM_SHUFFLE(1, 0, 3, 2)));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(r);
}

// 32 groups: weight p of groups 0..15 lies beside weight p of groups 0..15, 64 further on that of 16..31
static inline __m256i products(const uint8_t * qs, const uint8_t * sign, const int8_t * y) {
    // weights + 1 of the 16 indices
    const __m256i tables[4] = {
        TABLE(1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2),
        TABLE(2, 2, 2, 2, 1, 1, 1, 1, 2, 0, 2, 0, 2, 0, 2, 0),
        TABLE(2, 0, 2, 0, 2, 0, 2, 0, 1, 1, 1, 1, 2, 2, 0, 0),
        TABLE(2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 1, 1, 1, 1),
    };
    const __m128i bytes = _mm_loadu_si128((const __m128i *) qs);
    const __m128i low   = _mm_and_si128(bytes, _mm_set1_epi8(15));
    const __m128i high  = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    const __m256i index = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));

    int32_t four;
    memcpy(&four, sign, sizeof(four));
    const __m256i byte = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit      = _mm256_set1_epi64x((int64_t) 0x8040201008040201);
    const __m256i signs    = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(four), byte), bit);
    const __m256i negative = _mm256_cmpeq_epi8(signs, bit);

    __m256i sum = _mm256_setzero_si256();
    for (int p = 0; p < 4; ++p) {
        const __m256i positive = _mm256_shuffle_epi8(tables[p], index);
        const __m256i weights  = _mm256_blendv_epi8(positive, _mm256_sub_epi8(_mm256_set1_epi8(2), positive), negative);
        const __m256i x = _mm256_set_m128i(_mm_loadu_si128((const __m128i *) (y + 64 + 16*p)),
                                           _mm_loadu_si128((const __m128i *) (y + 16*p)));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
    }
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

void stq1_by_block(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc) {
    (void) bs; (void) bx; (void) by; (void) nrc;
    const stq1_block * x = vx;
    const q8_block   * y = vy;

    float sum = 0;
    for (int i = 0; i < n/256; ++i) {
        const __m256i both  = _mm256_add_epi32(products(x[i].qs, x[i].sign, y[i].qs),
                                               products(x[i].qs + 16, x[i].sign + 4, y[i].qs + 128));
        const __m256i sums  = _mm256_loadu_si256((const __m256i *) y[i].bsums);
        const __m256i ones  = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
        const int32_t total = sum_of_lanes(_mm256_sub_epi32(both, ones));
        sum += _cvtsh_ss(x[i].d)*y[i].d*(float) total;
    }
    *s = sum;
}

#endif
