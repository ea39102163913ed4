"""The matrix product of tiles under ThreadSanitizer: no thread reads what another one may not have written yet."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

# The products are in one graph, so that each of them writes where the one before has its tables.
MAIN = """
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu/sherry/buffer.h"
#include "ggml-sherry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS  4
#define K        2304 // more blocks than a thread makes tables of at a time
#define ROWS     300  // nine tiles, and rows that fill none
#define EXPERTS  4
#define USED     2
#define PRODUCTS 6

// with random values of its type
static void fill(struct ggml_tensor * tensor) {
    const size_t size = ggml_nbytes(tensor);
    char * data = malloc(size);
    for (size_t i = 0; i < size/sizeof(block_sherry) && tensor->type == GGML_TYPE_SHERRY; ++i) {
        block_sherry * block = (block_sherry *) data + i;
        for (size_t j = 0; j < sizeof(*block); ++j) {
            ((uint8_t *) block)[j] = (uint8_t) (rand() >> 8);
        }
        block->d[1] &= 0x3F; // small and positive
    }
    for (size_t i = 0; i < size/sizeof(float) && tensor->type == GGML_TYPE_F32; ++i) {
        ((float *) data)[i] = (float) rand()/RAND_MAX - 0.5f;
    }
    for (size_t i = 0; i < size/sizeof(int32_t) && tensor->type == GGML_TYPE_I32; ++i) {
        ((int32_t *) data)[i] = (int32_t) ((i/USED + i%USED)%EXPERTS); // the experts of a token differ
    }
    ggml_backend_tensor_set(tensor, data, 0, size);
    free(data);
}

int main(void) {
    const struct ggml_init_params no_data = { 1 << 20, NULL, true };
    struct ggml_context * in_tiles = ggml_init(no_data);
    struct ggml_tensor  * matrix  = ggml_new_tensor_3d(in_tiles, GGML_TYPE_SHERRY, K, ROWS, 1);
    struct ggml_tensor  * experts = ggml_new_tensor_3d(in_tiles, GGML_TYPE_SHERRY, K, ROWS, EXPERTS);
    ggml_backend_buffer_t tiles =
        ggml_backend_alloc_ctx_tensors_from_buft(in_tiles, ggml_backend_cpu_sherry_buffer_type());

    struct ggml_context * context  = ggml_init(no_data);
    struct ggml_cgraph  * graph    = ggml_new_graph(context);
    struct ggml_tensor  * products[PRODUCTS];
    const int tokens[PRODUCTS/2] = { 1, 8, 40 };
    for (int i = 0; i < PRODUCTS/2; ++i) {
        struct ggml_tensor * x   = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, tokens[i], 1);
        struct ggml_tensor * own = ggml_new_tensor_3d(context, GGML_TYPE_F32, K, USED, tokens[i]);
        struct ggml_tensor * ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, USED, tokens[i]);
        products[2*i    ] = ggml_mul_mat(context, matrix, x);
        products[2*i + 1] = ggml_mul_mat_id(context, experts, own, ids);
        ggml_build_forward_expand(graph, products[2*i]);
        ggml_build_forward_expand(graph, products[2*i + 1]);
    }
    ggml_backend_buffer_t rest = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type());
    fill(matrix);
    fill(experts);
    for (struct ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        if (t->op == GGML_OP_NONE) {
            fill(t);
        }
    }

    ggml_backend_t cpu = ggml_backend_cpu_init();
    void * first[PRODUCTS];
    int status = 0;
    for (int run = 0; run < 6; ++run) {
        ggml_backend_cpu_set_n_threads(cpu, run == 0 ? 1 : THREADS);
        if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS) {
            return 1;
        }
        for (int i = 0; i < PRODUCTS; ++i) {
            const size_t size = ggml_nbytes(products[i]);
            if (run == 0) {
                first[i] = malloc(size);
                memcpy(first[i], products[i]->data, size);
            } else if (memcmp(first[i], products[i]->data, size) != 0) {
                fprintf(stderr, "run %d: product %d differs from one thread's\\n", run, i);
                status = 2;
            }
        }
    }
    for (int i = 0; i < PRODUCTS; ++i) {
        free(first[i]);
    }
    ggml_backend_free(cpu);
    ggml_backend_buffer_free(tiles);
    ggml_backend_buffer_free(rest);
    ggml_free(in_tiles);
    ggml_free(context);
    return status;
}
"""

# Threads of ggml's own: of OpenMP's, the sanitizer does not see what they wait for.
DEFINES = [
    "GGML_OPENMP=OFF",
    "GGML_SANITIZE_THREAD=ON",
    "CMAKE_C_FLAGS_RELEASE=-O1 -g",
    "CMAKE_CXX_FLAGS_RELEASE=-O1 -g",
]
SANITIZE = ["-g", "-O1", "-fsanitize=thread"]


@dataclass(frozen=True)
class Tools:
    compiler: list[str]
    start: list[str]  # what comes before the name of a program


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """A C compiler that can link the sanitizer, and how to run what it made; in CI on Linux the test needs them."""
    give_up = pytest.fail if os.environ.get("CI") and platform.system() == "Linux" else pytest.skip
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        give_up(f"no C compiler {compiler[0]}")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    link = [*compiler, *SANITIZE, str(folder / "empty.c"), "-o", str(folder / "empty")]
    done = subprocess.run(link, capture_output=True, text=True)
    if done.returncode:
        give_up(f"{compiler[0]} cannot link the thread sanitizer: {done.stderr}")
    # Some kernels place now and then a program where the sanitizer cannot have it, unless told to place all alike;
    # some containers forbid telling them.
    for start in (["setarch", "-R"], []):
        if start and shutil.which(start[0]) is None:
            continue
        done = subprocess.run([*start, str(folder / "empty")], capture_output=True, text=True)
        if done.returncode == 0:
            return Tools(compiler, start)
    give_up(f"an empty program does not run with the thread sanitizer: {done.stderr}")
    raise AssertionError  # not reached


def test_no_thread_outruns_another(tools: Tools, tmp_path: Path) -> None:
    build = llama_cpp.build(["ggml-cpu"], defines=DEFINES)
    (tmp_path / "main.c").write_text(MAIN, encoding="ascii")
    includes = [f"-I{build.source / 'ggml' / folder}" for folder in ("include", "src")]
    libraries = [f"-L{build.bin_dir}", f"-Wl,-rpath,{build.bin_dir}", "-lggml-cpu", "-lggml-base"]
    command = [*tools.compiler, *SANITIZE, *includes, tmp_path / "main.c", *libraries, "-o", tmp_path / "check"]
    subprocess.run([str(part) for part in command], check=True)
    options = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    program = [*tools.start, str(tmp_path / "check")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=options)
    assert done.returncode == 0, done.stderr
