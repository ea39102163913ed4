#include "isa.h"
#include "row.h"

#if defined(SHERRY_ISA_AVX2)

#include <immintrin.h>
#include <string.h>

// vec_dot of one row, SHERRY x Q8_SHERRY, AVX2: one block of 128 weights at a time. STQ1_0 x Q8_STQ1_0: half a block.
//
//     s = fma(sum of the block, x.d*y.d, s), block by block;  sum of q*y.qs - y.sum,  q = weight + 1 = 0, 1, 2
//
// Byte g of a 256-bit register belongs to group g: groups 0..15 are the low nibbles of qs in the low lane, 16..31 the
// high nibbles in the high lane. Plane p of the weights (the p-th weight of all groups) is one pshufb of an index of
// four bits, though a code has five: with s2, s3 the signs of second and third themselves, not relative to first,
// planes 2 and 3 depend on (zero_pos, s3, s2), planes 0 and 1 on (zero_pos, sign, s2).
//
// 16-bit sums: a lane gets 4 planes x 2 bytes x 2*127 = 2032 at most; madd to 32 bits once per block. With VNNI the
// sums are 32 bits from the start.
// 16 registers: 9 constants, 4 planes, 3 in flight.
//
// 27 vector operations a block, 22 with VNNI, to the sums in eight lanes, and 11 to add those up and to scale: all
// kernels add up block by block. TQ2_0 has about 20 for as many weights: unpacking five bits costs more than unpacking
// two. So products pack rows into tiles, and this is for the rows that fill none.

// Products of four bytes summed into 32 bits, where a compiler may use VNNI: four instructions for nine.
#if defined(SHERRY_ISA_AVX512VNNI_VL)
#define DPBUSD _mm256_dpbusd_epi32
#elif defined(SHERRY_ISA_AVXVNNI)
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

#define TABLE(...) _mm256_broadcastsi128_si256(_mm_setr_epi8(__VA_ARGS__))

static inline uint32_t load_u32(const void * p) {
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint16_t load_u16(const void * p) {
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

typedef __m256i isums;

// where the sign of the group is that byte g of a register belongs to
typedef struct {
    __m256i byte;
    __m256i bit;
} signs_at;

static inline signs_at sherry_signs(void) {
    const signs_at at = {
        _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3),
        _mm256_set1_epi64x((int64_t) 0x8040201008040201),
    };
    return at;
}

// the low nibbles of qs are the even groups, the high ones the odd groups
static inline signs_at stq1_0_signs(void) {
    const signs_at at = {
        TABLE(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
        _mm256_setr_epi32(0x40100401, 0x40100401, 0x40100401, 0x40100401,
            (int) 0x80200802, (int) 0x80200802, (int) 0x80200802, (int) 0x80200802),
    };
    return at;
}

// q[p]: byte g is weight p of group g, plus 1
static inline void decode(const uint8_t * codes, const uint8_t * four_signs, signs_at at, __m256i q[4]) {
    const __m256i signs = _mm256_shuffle_epi8(_mm256_set1_epi32((int) load_u32(four_signs)), at.byte);
    const __m256i sign  = _mm256_cmpeq_epi8(_mm256_and_si256(signs, at.bit), at.bit); // 0 or -1

    const __m256i qs = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) codes));
    const __m256i index = _mm256_and_si256(_mm256_srlv_epi64(qs, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(0xF));

    // zero_pos << 2 | s3 << 1 | s2
    const __m256i i23 = _mm256_xor_si256(index, _mm256_and_si256(sign, _mm256_set1_epi8(3)));
    // zero_pos << 2 | sign << 1 | s2
    const __m256i i01 = _mm256_or_si256(
        _mm256_and_si256(i23, _mm256_set1_epi8(0xD)), _mm256_and_si256(sign, _mm256_set1_epi8(2)));

    // zero_pos:                             0           1           2           3
    q[0] = _mm256_shuffle_epi8(TABLE(1, 1, 1, 1, 2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0), i01); // first
    q[1] = _mm256_shuffle_epi8(TABLE(2, 2, 0, 0, 1, 1, 1, 1, 2, 0, 2, 0, 2, 0, 2, 0), i01); // first or second
    q[2] = _mm256_shuffle_epi8(TABLE(2, 0, 2, 0, 2, 0, 2, 0, 1, 1, 1, 1, 2, 2, 0, 0), i23); // second or third
    q[3] = _mm256_shuffle_epi8(TABLE(2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 1, 1, 1, 1), i23); // third
}

// eight 32-bit parts of the sum over the block of weight*y.qs
static inline isums isum(const uint8_t * qs, const uint8_t * signs, signs_at at, const block_q8_sherry * y) {
    __m256i q[4];
    decode(qs, signs, at, q);

    const __m256i * planes = (const __m256i *) y->qs;
#if defined(DPBUSD)
    __m256i sum = _mm256_zextsi128_si256(_mm_cvtsi32_si128(-y->sum));
    sum = DPBUSD(sum, q[0], _mm256_loadu_si256(planes + 0));
    sum = DPBUSD(sum, q[1], _mm256_loadu_si256(planes + 1));
    sum = DPBUSD(sum, q[2], _mm256_loadu_si256(planes + 2));
    return DPBUSD(sum, q[3], _mm256_loadu_si256(planes + 3));
#else
    const __m256i p0 = _mm256_maddubs_epi16(q[0], _mm256_loadu_si256(planes + 0));
    const __m256i p1 = _mm256_maddubs_epi16(q[1], _mm256_loadu_si256(planes + 1));
    const __m256i p2 = _mm256_maddubs_epi16(q[2], _mm256_loadu_si256(planes + 2));
    const __m256i p3 = _mm256_maddubs_epi16(q[3], _mm256_loadu_si256(planes + 3));

    const __m256i sum16 = _mm256_add_epi16(_mm256_add_epi16(p0, p1), _mm256_add_epi16(p2, p3));
    const __m256i bias  = _mm256_setr_epi32(y->sum, 0, 0, 0, 0, 0, 0, 0);
    return _mm256_sub_epi32(_mm256_madd_epi16(sum16, _mm256_set1_epi16(1)), bias);
#endif
}

static inline int32_t reduce_isum(isums v) {
    __m128i r = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, _MM_SHUFFLE(1, 0, 3, 2)));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(r);
}

static inline float add_scaled(float sum, int32_t isum, const uint8_t * d, const block_q8_sherry * y) {
    const __m128 scale = _mm_mul_ss(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(d))), _mm_set_ss(y->d));
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_cvtsi32_ss(_mm_setzero_ps(), isum), scale, _mm_set_ss(sum)));
}

#define PREFETCH(x) _mm_prefetch((const char *) ((uintptr_t) (x) + 2048), _MM_HINT_T0)

// four times 8 activations, in the order of the arguments
static inline __m256i to_int8(const float * x0, const float * x1, const float * x2, const float * x3, __m256 id) {
    const __m256i i0 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x0), id));
    const __m256i i1 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x1), id));
    const __m256i i2 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x2), id));
    const __m256i i3 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x3), id));

    // packs interleave the 128-bit lanes: dword l of the result is dword 0, 2, 4, 6, 1, 3, 5, 7 of the activations
    const __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static inline __m256i sum_of(__m256i q) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
}

// 8 groups of four: byte p of each dword into quadword p
static inline __m256i planes_of_8(__m256i q) {
    // gathers byte p of the four dwords of a 128-bit lane into dword p
    const __m256i transpose = TABLE(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    // dwords plane 0..3 of groups 0..3 and 4..7 -> quadwords plane 0..3 of groups 0..7
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(q, transpose), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static inline void g32_planes(const float * x, float id, int8_t * planes) {
    const __m256i q = to_int8(x, x + 8, x + 16, x + 24, _mm256_set1_ps(id));
    _mm256_storeu_si256((__m256i *) planes, planes_of_8(q));
}

// planes of groups of four consecutive activations
static inline int32_t sherry_planes(const float * x, float id, int8_t * planes) {
    __m256i sum = _mm256_setzero_si256();
    __m256i t[4]; // groups 8j..8j+7: 64-bit element p of a lane pair holds plane p
    for (int j = 0; j < 4; ++j, x += 32) {
        const __m256i q = to_int8(x, x + 8, x + 16, x + 24, _mm256_set1_ps(id));
        sum = _mm256_add_epi32(sum, sum_of(q));
        t[j] = planes_of_8(q);
    }

    // transpose of 4x4 quadwords: t[j] = plane 0..3 -> planes[p] = groups of j = 0..3
    const __m256i t01l = _mm256_unpacklo_epi64(t[0], t[1]); // planes 0, 2
    const __m256i t01h = _mm256_unpackhi_epi64(t[0], t[1]); // planes 1, 3
    const __m256i t23l = _mm256_unpacklo_epi64(t[2], t[3]);
    const __m256i t23h = _mm256_unpackhi_epi64(t[2], t[3]);

    _mm256_storeu_si256((__m256i *) planes + 0, _mm256_permute2x128_si256(t01l, t23l, 0x20));
    _mm256_storeu_si256((__m256i *) planes + 1, _mm256_permute2x128_si256(t01h, t23h, 0x20));
    _mm256_storeu_si256((__m256i *) planes + 2, _mm256_permute2x128_si256(t01l, t23l, 0x31));
    _mm256_storeu_si256((__m256i *) planes + 3, _mm256_permute2x128_si256(t01h, t23h, 0x31));
    return reduce_isum(sum);
}

// planes of groups whose activations lie 16 apart, the even groups first
static inline int32_t stq1_0_planes(const float * x, float id, int8_t * planes) {
    const __m256i even_odd = TABLE(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);

    __m256i sum = _mm256_setzero_si256();
    for (int p = 0; p < 4; ++p, x += 16) {
        const __m256i q = to_int8(x, x + 8, x + 64, x + 72, _mm256_set1_ps(id)); // groups 0..15, 16..31
        sum = _mm256_add_epi32(sum, sum_of(q));
        const __m256i halves = _mm256_shuffle_epi8(q, even_odd);
        _mm256_storeu_si256((__m256i *) planes + p, _mm256_permute4x64_epi64(halves, _MM_SHUFFLE(3, 1, 2, 0)));
    }
    return reduce_isum(sum);
}

INLINE float largest(const float * x, const int n) {
    // as integers, magnitudes are in the order of the floats, with infinity and NaN above all of them
    __m256i max = _mm256_setzero_si256();
    for (int j = 0; j < n; j += 8) {
        const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + j));
        max = _mm256_max_epi32(max, _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)));
    }
    __m128i max4 = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    max4 = _mm_max_epi32(max4, _mm_shuffle_epi32(max4, _MM_SHUFFLE(1, 0, 3, 2)));
    max4 = _mm_max_epi32(max4, _mm_shuffle_epi32(max4, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtss_f32(_mm_castsi128_ps(max4));
}

#include "row-simd.h"

ROW_KERNEL(avx2)

#endif
