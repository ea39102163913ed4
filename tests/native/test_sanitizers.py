"""The quantizer and the kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

# Buffers of exactly the size needed, blocks at an odd address: a read or write beside them ends the program.
MAIN = """
#include "ggml-cpu/sherry/stq1.h"
#include "ggml-cpu/sherry/tile.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t ggml_row_size(enum ggml_type type, int64_t n) {
    return type == GGML_TYPE_SHERRY ? n/QK_SHERRY*sizeof(block_sherry) :
           type == GGML_TYPE_STQ1_0 ? n/QK_STQ1_0*sizeof(block_stq1_0) : 0;
}

// n_tiles tiles times n_tokens rows of activations: each kernel gives what the generic one gives, scales being 1
static void check_tiles(const char * name, int n_blocks, int n_tiles, int n_tokens) {
    const struct ggml_sherry_tile_kernel * kernels[2] = {
        ggml_sherry_tile_kernel_named("generic"), ggml_sherry_tile_kernel_named(name)
    };
    if (kernels[1] == NULL) {
        return;
    }
    const int rows = n_tiles*SHERRY_TILE_ROWS;
    const size_t size = (size_t) rows*n_blocks*sizeof(block_sherry);
    block_sherry    * weights = malloc(size);
    block_sherry    * back    = malloc(size);
    block_q8_sherry * x       = malloc((size_t) n_tokens*n_blocks*sizeof(*x));
    float           * ones    = malloc(n_blocks*sizeof(float));
    float           * result[2][SHERRY_MAX_TOKENS];
    for (size_t i = 0; i < size; ++i) {
        ((uint8_t *) weights)[i] = (uint8_t) rand();
    }
    for (int i = 0; i < rows*n_blocks; ++i) {
        weights[i].d[0] = 0; // 1 as fp16
        weights[i].d[1] = 0x3C;
    }
    for (int i = 0; i < n_tokens*n_blocks; ++i) {
        for (int j = 0; j < QK_SHERRY; ++j) {
            x[i].qs[j] = (int8_t) (rand()%255 - 127);
        }
    }
    for (int b = 0; b < n_blocks; ++b) {
        ones[b] = 1;
    }
    for (int k = 0; k < 2; ++k) {
        char * tiles = malloc(size);
        void * tables[SHERRY_MAX_TOKENS];
        const float * d[SHERRY_MAX_TOKENS];
        for (int i = 0; i < n_tiles; ++i) {
            for (int b = 0; b < n_blocks; ++b) {
                const size_t first = (size_t) i*SHERRY_TILE_ROWS*n_blocks + b;
                void * tile = tiles + ((size_t) i*n_blocks + b)*SHERRY_TILE_BYTES;
                kernels[k]->pack(weights + first, n_blocks, tile);
                kernels[k]->unpack(tile, back + first, n_blocks);
            }
        }
        if (memcmp(weights, back, size) != 0) {
            abort();
        }
        for (int t = 0; t < n_tokens; ++t) {
            tables[t] = aligned_alloc(64, n_blocks*kernels[k]->table_bytes);
            for (int b = 0; b < n_blocks; ++b) {
                kernels[k]->tables(x + t*n_blocks + b, (char *) tables[t] + b*kernels[k]->table_bytes);
            }
            d[t] = ones;
            result[k][t] = malloc(rows*sizeof(float));
        }
        kernels[k]->mul(n_tiles, n_blocks*SHERRY_TILE_BYTES, tiles, n_blocks, n_tokens, (const void * const *) tables,
                        d, result[k], true, true);
        kernels[k]->mul(n_tiles, n_blocks*SHERRY_TILE_BYTES, tiles, n_blocks, n_tokens, (const void * const *) tables,
                        d, result[k], false, false);
        for (int t = 0; t < n_tokens; ++t) {
            free(tables[t]);
        }
        free(tiles);
    }
    for (int t = 0; t < n_tokens; ++t) {
        if (memcmp(result[0][t], result[1][t], rows*sizeof(float)) != 0) {
            abort();
        }
        free(result[0][t]);
        free(result[1][t]);
    }
    free(weights); free(back); free(x); free(ones);
}

static void check(int n, float special) {
    const int nb = n/QK_SHERRY;
    float   * w    = malloc(n*sizeof(float));
    char    * room = malloc(nb*sizeof(block_sherry) + 1);
    void    * x    = room + 1;
    void    * y    = malloc(nb*sizeof(block_q8_sherry));
    int32_t * sums = malloc(nb*sizeof(int32_t));
    float s;
    for (int i = 0; i < n; ++i) {
        w[i] = (float) rand()/RAND_MAX - 0.5f;
    }
    w[n - 1] = special;
    quantize_sherry(w, x, 1, n, w);
    ggml_validate_sherry(x, nb);
    ggml_sherry_changed_groups(w, n);
    quantize_row_sherry(w, x, n);
    quantize_row_q8_sherry(w, y, n);
    quantize_row_q8_sherry_ref(w, y, n);
    ggml_sherry_isums_generic(n, sums, x, y);
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    int32_t * simd = malloc(nb*sizeof(int32_t));
    ggml_sherry_isums_avx2(n, simd, x, y);
    if (memcmp(sums, simd, nb*sizeof(int32_t)) != 0) {
        abort();
    }
    free(simd);
#endif
    ggml_vec_dot_sherry_q8_sherry_generic(n, &s, 0, x, 0, y, 0, 1);
    ggml_vec_dot_sherry_q8_sherry(n, &s, 0, x, 0, y, 0, 1);
    memset(x, 0xFF, nb*sizeof(block_sherry));
    dequantize_row_sherry(x, w, n);
    free(w); free(room); free(y); free(sums);
}

static void check_stq1(int n, float special) {
    const int nb = n/QK_STQ1_0;
    float   * w    = malloc(n*sizeof(float));
    char    * room = malloc(nb*sizeof(block_stq1_0) + 1);
    void    * x    = room + 1;
    void    * y    = malloc(2*nb*sizeof(block_q8_sherry));
    int32_t * sums = malloc(2*nb*sizeof(int32_t));
    float s;
    for (int i = 0; i < n; ++i) {
        w[i] = (float) rand()/RAND_MAX - 0.5f;
    }
    w[n - 1] = special;
    quantize_stq1_0(w, x, 1, n, w);
    ggml_validate_stq1_0(x, nb);
    ggml_stq1_changed_groups(w, n);
    quantize_row_stq1_0(w, x, n);
    quantize_row_q8_stq1_0(w, y, n);
    quantize_row_q8_stq1_0_ref(w, y, n);
    ggml_stq1_isums_generic(n, sums, x, y);
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    int32_t * simd = malloc(2*nb*sizeof(int32_t));
    ggml_stq1_isums_avx2(n, simd, x, y);
    if (memcmp(sums, simd, 2*nb*sizeof(int32_t)) != 0) {
        abort();
    }
    free(simd);
#endif
    ggml_vec_dot_stq1_0_q8_stq1_0_generic(n, &s, 0, x, 0, y, 0, 1);
    ggml_vec_dot_stq1_0_q8_stq1_0(n, &s, 0, x, 0, y, 0, 1);
    memset(x, 0xFF, nb*sizeof(block_stq1_0));
    dequantize_row_stq1_0(x, w, n);
    free(w); free(room); free(y); free(sums);
}

int main(void) {
#if defined(BEST)
    if (strcmp(ggml_sherry_best_tile_kernel()->name, BEST) != 0) {
        abort();
    }
#endif
    const float special[] = { 0, 1e-45f, 3.4e38f, -INFINITY, NAN };
    for (int i = 0; i < 5; ++i) {
        check(128, special[i]);
        check(640, special[i]);
        check_stq1(256, special[i]);
        check_stq1(1280, special[i]);
    }
    const char * kernels[] = { "generic", "avx2", "avx512", "neon" };
    for (int k = 0; k < 4; ++k) {
        for (int n = 1; n <= SHERRY_MAX_TOKENS; ++n) {
            check_tiles(kernels[k], 1, n, n);
            check_tiles(kernels[k], 5, 1, n);
            check_tiles(kernels[k], 5, 4, n);
        }
    }
    return 0;
}
"""


SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A C compiler that can link the sanitizers and run what it made."""
    command = os.environ.get("CC", "cc").split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C compiler {command[0]}")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    link = [*command, *SANITIZE, str(folder / "empty.c"), "-o", str(folder / "empty")]
    if subprocess.run(link, capture_output=True).returncode or subprocess.run([str(folder / "empty")]).returncode:
        pytest.skip(f"{command[0]} has no sanitizers here")
    return command


# instruction sets that a native build of most machines has more than, and what /proc/cpuinfo calls them
FLAGS = {"baseline": [], "native": [NATIVE]}
NEEDS = {"avx2": "avx2", "avx512": "avx512bw"}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl"]


def runs_here(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return name not in NEEDS or not info.exists() or NEEDS[name] in info.read_text(encoding="ascii").split()


def compile_and_run(source: Path, compiler: list[str], folder: Path, flags: list[str]) -> None:
    (folder / "main.c").write_text(MAIN, encoding="ascii")
    ggml = source / "ggml"
    sources = [folder / "main.c", ggml / "src/ggml-sherry.c", ggml / "src/ggml-stq1.c", *sorted((ggml / "src/ggml-cpu/sherry").glob("*.c"))]
    includes = [f"-I{ggml / name}" for name in ("include", "src", "src/ggml-cpu")]
    command = [*compiler, *SANITIZE, *flags, *includes, *sources, "-o", folder / "check", "-lm"]
    subprocess.run([str(part) for part in command], check=True)
    done = subprocess.run([str(folder / "check")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FLAGS)
def test_no_access_out_of_bounds_and_nothing_undefined(
    runtime: llama_cpp.Build, compiler: list[str], tmp_path: Path, name: str
) -> None:
    if not runs_here(name):
        pytest.skip(f"this machine has no {name}")
    compile_and_run(runtime.source, compiler, tmp_path, FLAGS[name])


# SIMDe's AVX-512 in plain C, for machines without it.
IN_C = """
#pragma once
#include <stdint.h>
#include <string.h>
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

// SIMDe's macro has too many parameters
#undef  _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

// SIMDe has that of half the width
static inline __m512 _mm512_cvtph_ps(__m256i x) {
    const __m512 low = _mm512_castps256_ps512(_mm256_cvtph_ps(_mm256_castsi256_si128(x)));
    return _mm512_insertf32x8(low, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)), 1);
}

// values need not be in registers
#define __asm__(...) ((void) 0)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernels are those of x86-64")
def test_avx512_in_c(runtime: llama_cpp.Build, compiler: list[str], tmp_path: Path) -> None:
    (tmp_path / "immintrin.h").write_text(IN_C, encoding="ascii")
    (tmp_path / "simde.c").write_text("#include <simde/x86/avx512.h>\n", encoding="ascii")
    if subprocess.run([*compiler, "-E", str(tmp_path / "simde.c")], capture_output=True).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no SIMDe (Debian: libsimde-dev)")
    # without FMA the kernels for AVX2 are left out: they would take long to compile
    claimed = [f"-D__{name}__" for name in ("AVX", "AVX2", "AVX512F", "AVX512BW")]
    # SIMDe adds signed bytes where the instruction wraps
    flags = [*claimed, f"-I{tmp_path}", '-DBEST="avx512"', "-g0", "-Wno-psabi", "-fwrapv"]
    compile_and_run(runtime.source, compiler, tmp_path, [*flags, "-fno-sanitize=signed-integer-overflow"])
