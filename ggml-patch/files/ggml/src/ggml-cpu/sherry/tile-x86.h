#pragma once

// What tile-avx2.c, tile-avx512.c and tile-avx512vbmi.c share; tile-avx512.h is of the latter two.

#include "isa.h"
#include "tile.h"

#if defined(SHERRY_ISA_AVX2) || defined(SHERRY_ISA_AVX512)

#include <immintrin.h>

// Compilers add sums up in another order, and run out of registers: this keeps a value in one, here and now.
#if defined(__GNUC__)
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x)
#endif

// planes to groups: the four activations of a group in a dword
INLINE void groups_of_planes(const block_q8_sherry * x, int32_t groups[SHERRY_GROUPS]) {
    const __m256i p0 = _mm256_loadu_si256((const __m256i *) x->qs + 0);
    const __m256i p1 = _mm256_loadu_si256((const __m256i *) x->qs + 1);
    const __m256i p2 = _mm256_loadu_si256((const __m256i *) x->qs + 2);
    const __m256i p3 = _mm256_loadu_si256((const __m256i *) x->qs + 3);
    const __m256i p01l = _mm256_unpacklo_epi8(p0, p1); // groups 0..7, 16..23
    const __m256i p01h = _mm256_unpackhi_epi8(p0, p1); // groups 8..15, 24..31
    const __m256i p23l = _mm256_unpacklo_epi8(p2, p3);
    const __m256i p23h = _mm256_unpackhi_epi8(p2, p3);
    const __m256i g0 = _mm256_unpacklo_epi16(p01l, p23l); // groups 0..3, 16..19
    const __m256i g1 = _mm256_unpackhi_epi16(p01l, p23l); // groups 4..7, 20..23
    const __m256i g2 = _mm256_unpacklo_epi16(p01h, p23h); // groups 8..11, 24..27
    const __m256i g3 = _mm256_unpackhi_epi16(p01h, p23h); // groups 12..15, 28..31
    _mm256_storeu_si256((__m256i *) groups + 0, _mm256_permute2x128_si256(g0, g1, 0x20));
    _mm256_storeu_si256((__m256i *) groups + 1, _mm256_permute2x128_si256(g2, g3, 0x20));
    _mm256_storeu_si256((__m256i *) groups + 2, _mm256_permute2x128_si256(g0, g1, 0x31));
    _mm256_storeu_si256((__m256i *) groups + 3, _mm256_permute2x128_si256(g2, g3, 0x31));
}

#endif
