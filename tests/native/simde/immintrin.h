#pragma once

// AVX-512 in plain C, of SIMDe, for machines without it: test_sanitizers.py puts this before the compiler's immintrin.h.
// What is inline is not: a kernel would be thousands of inlined functions, and take a compiler minutes and gigabytes.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SIMDE_NO_NATIVE
#define SIMDE_NO_INLINE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

// SIMDe's macro has too many parameters
#undef  _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

// SIMDe's rounds twice
static inline __m512 fused_multiply_add(__m512 a, __m512 b, __m512 c) {
    float x[16], y[16], z[16];
    memcpy(x, &a, sizeof(x));
    memcpy(y, &b, sizeof(y));
    memcpy(z, &c, sizeof(z));
    for (int i = 0; i < 16; ++i) {
        z[i] = fmaf(x[i], y[i], z[i]);
    }
    memcpy(&c, z, sizeof(z));
    return c;
}
#undef  _mm512_fmadd_ps
#define _mm512_fmadd_ps(a, b, c) fused_multiply_add(a, b, c)

// SIMDe has that of half the width
static inline __m512 _mm512_cvtph_ps(__m256i x) {
    const __m512 low = _mm512_castps256_ps512(_mm256_cvtph_ps(_mm256_castsi256_si128(x)));
    return _mm512_insertf32x8(low, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)), 1);
}

// values need not be in registers
#define __asm__(...) ((void) 0)

#define always_inline noinline // in isa.h
