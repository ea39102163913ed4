// What CUDA, and ggml-cuda beside the files under test, give to device code: by their documentation, in plain C++.

#pragma once

#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline

struct float2 { float x, y; };
struct int2 { int x, y; };
static int2 make_int2(int x, int y) { return { x, y }; }

struct half {
    ggml_fp16_t bits;
    operator float() const { return ggml_fp16_to_fp32(bits); }
};
struct half2 { half low, high; };

static float __half2float(half h) { return h; }
static float __low2float(half2 h) { return h.low; }

static int get_int_b2(const void * x, int i) {
    int value;
    memcpy(&value, (const char *) x + 4*i, 4);
    return value;
}

static int get_int_b4(const void * x, int i) { return get_int_b2(x, i); }

static int ggml_cuda_dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) {
        c += (int8_t) (a >> 8*i) * (int8_t) (b >> 8*i);
    }
    return c;
}

// byte i of the result is the one of b:a that nibble i of the selector numbers
static int __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = (uint64_t) b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= (uint32_t) (both >> 8*(selector >> 4*i & 7) & 0xFF) << 8*i;
    }
    return (int) result;
}

// what the threads of a block do where they wait for each other: nothing, as long as they run one after the other
static void (*wait_for_others)() = [] {};
static void __syncthreads() { wait_for_others(); }

template <ggml_type type> struct ggml_cuda_type_traits;
