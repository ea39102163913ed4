#pragma once

// The instruction sets that kernels are written for. Nothing else in this folder asks the compiler which instructions it
// may use: a library is compiled for one processor, or ggml makes one library for each kind, and what a kernel needs is
// there at compile time or the kernel is left out.
//
// A new set X is a guard SHERRY_ISA_X here, a file row-X.c or tile-X.c or both, guarded as a whole, and an entry in the
// table of row.c or tile.c, declared in row.h or tile.h. CMake takes all files of this folder. Intrinsics stand in the
// files of a set only.

// 256 bits. FMA and F16C (fp16 to float) are sets of their own, which all processors with AVX2 have, but a compiler may
// be told to leave out. MSVC has no macros for them: it takes them for a part of AVX2.
#if defined(__AVX2__) && (defined(_MSC_VER) || (defined(__FMA__) && defined(__F16C__)))
#define SHERRY_ISA_AVX2
#endif

// vpdpbusd, sums of four products of bytes: with registers of 256 bits it came twice, first with AVX-512's encoding,
// then with that of AVX2, and the intrinsics have two names.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define SHERRY_ISA_AVX512VNNI_VL
#endif
#if defined(__AVXVNNI__)
#define SHERRY_ISA_AVXVNNI
#endif

// 512 bits. F has floats, fp16 and 32-bit integers, BW has bytes and words: vpermw is what the tile kernel lives on.
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define SHERRY_ISA_AVX512
#endif

// VBMI has vpermb, look-up of bytes in all 64 of a register. Intel's since Ice Lake, AMD's since Zen 4.
#if defined(SHERRY_ISA_AVX512) && defined(__AVX512VBMI__)
#define SHERRY_ISA_AVX512VBMI
#endif

// AMX has tdpbssd, products of matrices of bytes. All its processors have VBMI, whose tiles it multiplies. Tests have its
// instructions in plain C.
#if defined(SHERRY_ISA_AVX512VBMI) && ((defined(__AMX_TILE__) && defined(__AMX_INT8__)) || defined(SHERRY_AMX_EMULATED))
#define SHERRY_ISA_AMX
#endif

// vpdpbusd with registers of 512 bits
#if defined(__AVX512VNNI__)
#define SHERRY_ISA_AVX512VNNI
#endif

// 128 bits. Only that of aarch64: 32-bit ARM lacks tbl of 16 bytes, sums across a register, and rounding to nearest.
#if defined(__ARM_NEON) && defined(__aarch64__)
#define SHERRY_ISA_NEON
#endif

// sdot, sums of four products of bytes
#if defined(__ARM_FEATURE_DOTPROD)
#define SHERRY_ISA_DOTPROD
#endif

// A function whose arguments are constants wherever it is called: it is compiled anew for each call.
#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

// before a loop whose number of turns is a constant where it is inlined: nothing of it is left
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL
#endif
