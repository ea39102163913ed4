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
#include "ggml-cpu/sherry/sherry.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t ggml_row_size(enum ggml_type type, int64_t n) {
    return type == GGML_TYPE_SHERRY ? n/QK_SHERRY*sizeof(block_sherry) : 0;
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

int main(void) {
    const float special[] = { 0, 1e-45f, 3.4e38f, -INFINITY, NAN };
    for (int i = 0; i < 5; ++i) {
        check(128, special[i]);
        check(640, special[i]);
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


# avx2: without VNNI, which a native build of most machines has
FLAGS = {"baseline": [], "native": [NATIVE]}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_no_access_out_of_bounds_and_nothing_undefined(
    runtime: llama_cpp.Build, compiler: list[str], tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "main.c").write_text(MAIN, encoding="ascii")
    ggml = runtime.source / "ggml"
    sources = [tmp_path / "main.c", ggml / "src/ggml-sherry.c", *sorted((ggml / "src/ggml-cpu/sherry").glob("*.c"))]
    includes = [f"-I{ggml / folder}" for folder in ("include", "src", "src/ggml-cpu")]
    command = [*compiler, *SANITIZE, *flags, *includes, *sources, "-o", tmp_path / "check", "-lm"]
    subprocess.run([str(part) for part in command], check=True)
    done = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
