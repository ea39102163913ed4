"""Many tokens by AMX: the whole product against look-up's bits, and upstream's product of Q8_0 by AMX.

The library is compiled for a processor with AMX, and its instructions are executed by a handler of the signal that they
raise here (amx/traps.c). test_sanitizers.py has the kernel by itself, kernels.c, with the instructions in plain C. On a
processor with AMX the other tests have the real one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

TRAPS = Path(__file__).with_name("amx") / "traps.c"

SETUP = """
import ctypes, dataclasses, importlib.util, json, sys
import numpy as np

scripts, tests, conftest, base, cpu, result = sys.argv[1:]
sys.path += [scripts, tests]
spec = importlib.util.spec_from_file_location("native_conftest", conftest)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)

ggml = module.Ggml(ctypes.CDLL(base), ctypes.CDLL(cpu))
ggml.cpu.ggml_cpu_init()
done = ctypes.c_long.in_dll(ctypes.CDLL(None), "amx_products")

def activations(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
"""

# A process for each kernel. On stdout is JSON: the name of the kernel, and products of bytes per case.
PRODUCTS = """
from operands import random_blocks
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0

chosen = ggml.cpu.ggml_sherry_chosen_tile_kernel
chosen.restype = ctypes.POINTER(ctypes.c_char_p)
name = chosen().contents.value.decode()  # tries AMX, which the counts below leave out
results, counts = {}, {}

def compute(case, *arguments, **options):
    before = done.value
    results[case] = ggml.compute(*arguments, tiles=True, **options)
    counts[case] = done.value - before

kinds = (SHERRY, module.SHERRY, 384), (SHERRY_2P, module.SHERRY_2P, 384), (STQ1_0, module.STQ1_0, 512), \
    (SHERRY_G32, module.SHERRY_G32, 416)
for of, kind, k in kinds:
    packed = random_blocks(of, 70, k)
    for n in (1, 7, 8, 15, 16, 17, 63, 64, 65, 129, 130):
        compute(f"{kind.name}, {n} tokens", "mul_mat", packed, activations(n, k), kind=kind, threads=1 + n % 4)
    for rows in (31, 32, 100, 330):
        packed = random_blocks(of, rows, k)
        compute(f"{kind.name}, {rows} rows", "mul_mat", packed, activations(40, k), kind=kind, threads=4)
    packed = random_blocks(of, 2, 40, k)  # a matrix for two of activations; of few tokens each
    for n in (3, 20):
        compute(f"{kind.name}, {n} tokens of 4", "mul_mat", packed, activations(4, n, k), kind=kind)
    packed = random_blocks(of, 5, 40, k)
    for n in (1, 4, 50, 300):
        experts = np.stack([np.random.default_rng(t).permutation(4)[:2] for t in range(n)]).astype(np.int32) + 1
        experts[n // 2 :, 0] = 0  # many of one, few of others
        compute(f"{kind.name}, experts of {n} tokens", "mul_mat_id", packed, activations(n, 2, k), experts, kind=kind)
x = activations(20, 384)
x[3, 7], x[19, 300] = np.nan, np.inf
compute("not finite", "mul_mat", random_blocks(SHERRY, 64, 384), x)
np.savez(result, **results)
print(json.dumps([name, counts]))
"""

# upstream's product of Q8_0 with scales of 0.01
UPSTREAM = """
blocks = np.random.default_rng(0).integers(-127, 128, (64, 8, 34)).astype(np.int8)
weights = 0.01 * blocks[..., 2:].reshape(64, -1)
blocks[..., :2] = np.full(1, 0.01, np.float16).view(np.int8)
x = activations(20, 256)
by_amx = dataclasses.replace(module.Q8_0, buffer="AMX")
y = ggml.compute("mul_mat", blocks.view(np.uint8).reshape(64, -1), x, tiles=True, kind=by_amx)
np.savez(result, y=y.reshape(20, 64), expected=x @ weights.T)
print(json.dumps(done.value))
"""


@pytest.fixture(scope="module")
def with_amx() -> llama_cpp.Build:
    info = Path("/proc/cpuinfo")
    features = info.read_text(encoding="ascii").split() if info.exists() else []
    if "avx512vbmi" not in features:
        pytest.skip("AMX multiplies tiles for AVX-512 VBMI, which this machine does not have")
    if "amx_int8" in features:
        pytest.skip("this machine has AMX")
    # with -O3 gcc 12 leaves out more than with -O2
    flags = "-O3 -mamx-tile -mamx-int8"
    return llama_cpp.build(
        ["ggml-cpu"], defines=[f"CMAKE_{language}_FLAGS_RELEASE={flags}" for language in ("C", "CXX")]
    )


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("traps") / "traps.so"
    command = [*os.environ.get("CC", "cc").split(), "-O1", "-ftls-model=initial-exec", "-shared", "-fPIC"]
    subprocess.run([*command, str(TRAPS), "-o", str(library), "-ldl"], check=True)
    return library


Run = Callable[..., tuple[Any, dict[str, Any], str]]
Products = Callable[..., tuple[str, dict[str, int], dict[str, Any], str]]


@pytest.fixture(scope="module")
def run(with_amx: llama_cpp.Build, traps: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What a script prints, the arrays that it saves, and what was logged."""

    def run(script: str, **environment: str) -> tuple[Any, dict[str, Any], str]:
        result = tmp_path_factory.mktemp("run") / "results.npz"
        libraries = [with_amx.bin_dir / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu")]
        tests = Path(__file__).parent
        arguments = [repository / "scripts", tests, tests / "conftest.py", *libraries, result]
        done = subprocess.run(
            [sys.executable, "-c", SETUP + script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(traps), **environment},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), dict(np.load(result)), done.stderr

    return run


@pytest.fixture(scope="module")
def products(run: Run) -> Products:
    """A kernel's name, products of bytes by AMX, and results, per case; and what was logged."""

    def compute(kernel: str, **environment: str) -> tuple[str, dict[str, int], dict[str, Any], str]:
        (name, counts), results, said = run(PRODUCTS, SHERRY_KERNEL=kernel, **environment)
        return name, counts, results, said

    return compute


@pytest.fixture(scope="module")
def by_look_up(products: Products) -> dict[str, Any]:
    name, counts, results, _ = products("avx512vbmi")
    assert name == "avx512vbmi"
    assert not any(counts.values())
    return results


def test_many_tokens_have_the_bits_of_look_up(products: Products, by_look_up: dict[str, Any]) -> None:
    name, counts, results, said = products("amx")
    assert (name, said) == ("amx", "sherry: tiles for the kernel amx, as SHERRY_KERNEL says\n")
    assert results.keys() == by_look_up.keys()
    for case, result in results.items():
        np.testing.assert_array_equal(result, by_look_up[case], err_msg=case)
    # what AMX is for, and nothing else
    few = re.compile(r".*, ([1-7] tokens|31 rows|3 tokens of 4|experts of [14] tokens)")
    for case, count in counts.items():
        assert (count == 0) == bool(few.fullmatch(case)), case
    # Products of 16 tokens and 16 rows by 64 weights: two tiles of rows, three blocks, four for a block and a strip. Of
    # experts one has 150 tokens of 300.
    for tokens, strips in ((8, 1), (16, 1), (17, 2), (64, 4), (65, 5), (129, 9)):
        assert counts[f"sherry, {tokens} tokens"] == 2 * 3 * 4 * strips
        assert counts[f"sherry_2p, {tokens} tokens"] == 2 * 6 * 4 * strips
        assert counts[f"sherry_g32, {tokens} tokens"] == 2 * 4 * 8 * strips


def test_wrong_results_are_seen(products: Products, by_look_up: dict[str, Any]) -> None:
    _, counts, results, said = products("amx", AMX_WRONG="1")
    assert said.startswith("sherry: SHERRY_KERNEL=amx: its results are wrong, the fastest is taken\n")
    assert "not amx: its results are wrong" in said
    assert not any(counts.values())
    for case, result in results.items():
        np.testing.assert_array_equal(result, by_look_up[case], err_msg=case)


def test_it_is_not_taken_where_it_is_slower(products: Products) -> None:
    name, counts, _, said = products("")
    assert name != "amx"
    assert name == "avx512" or re.search(r", not amx: \d+ with 64", said)
    assert not any(counts.values())


def test_upstreams_product(run: Run) -> None:
    """Of registers that are not configured an instruction would end the program (patch 0015)."""
    count, arrays, _ = run(UPSTREAM)
    assert count > 0
    error = ((arrays["y"] - arrays["expected"]) ** 2).sum() / (arrays["expected"] ** 2).sum()
    assert error < 1e-4  # activations have 8 bits
