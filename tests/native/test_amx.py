"""Many tokens by AMX: the whole product, with AMX's instructions in plain C (tests/native/amx), against look-up's bits.

test_sanitizers.py has the kernel by itself, kernels.c. On a processor with AMX the other tests have the real one.
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

EMULATED = Path(__file__).with_name("amx")

# A process for each kernel. On stdout is JSON: the name of the kernel, and products of bytes per case.
SCRIPT = """
import ctypes, importlib.util, json, sys
import numpy as np

scripts, tests, conftest, base, cpu, result = sys.argv[1:]
sys.path += [scripts, tests]
spec = importlib.util.spec_from_file_location("native_conftest", conftest)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
from operands import random_blocks
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0

ggml = module.Ggml(ctypes.CDLL(base), ctypes.CDLL(cpu))
ggml.cpu.ggml_cpu_init()
chosen = ggml.cpu.ggml_sherry_chosen_tile_kernel
chosen.restype = ctypes.POINTER(ctypes.c_char_p)
name = chosen().contents.value.decode()  # tries AMX, which the counts below leave out
done = ctypes.c_long.in_dll(ggml.cpu, "amx_products")
results, counts = {}, {}

def compute(case, *arguments, **options):
    before = done.value
    results[case] = ggml.compute(*arguments, tiles=True, **options)
    counts[case] = done.value - before

def activations(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)

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


@pytest.fixture(scope="module")
def emulated() -> llama_cpp.Build:
    info = Path("/proc/cpuinfo")
    if not info.exists() or "avx512vbmi" not in info.read_text(encoding="ascii").split():
        pytest.skip("AMX multiplies tiles for AVX-512 VBMI, which this machine does not have")
    flags = f"-O2 -DSHERRY_AMX_EMULATED -I{EMULATED}"
    return llama_cpp.build(
        ["ggml-cpu"], defines=[f"CMAKE_{language}_FLAGS_RELEASE={flags}" for language in ("C", "CXX")]
    )


Run = Callable[..., tuple[str, dict[str, int], dict[str, Any], str]]


@pytest.fixture(scope="module")
def products(emulated: llama_cpp.Build, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A kernel's name, products of bytes by AMX, and results, per case; and what was logged."""

    def compute(kernel: str, **environment: str) -> tuple[str, dict[str, int], dict[str, Any], str]:
        result = tmp_path_factory.mktemp("products") / "results.npz"
        libraries = [emulated.bin_dir / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu")]
        tests = Path(__file__).parent
        arguments = [repository / "scripts", tests, tests / "conftest.py", *libraries, result]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "SHERRY_KERNEL": kernel, **environment},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        name, counts = json.loads(done.stdout)
        return name, counts, dict(np.load(result)), done.stderr

    return compute


@pytest.fixture(scope="module")
def by_look_up(products: Run) -> dict[str, Any]:
    name, counts, results, _ = products("avx512vbmi")
    assert name == "avx512vbmi"
    assert not any(counts.values())
    return results


def test_many_tokens_have_the_bits_of_look_up(products: Run, by_look_up: dict[str, Any]) -> None:
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


def test_wrong_results_are_seen(products: Run, by_look_up: dict[str, Any]) -> None:
    _, counts, results, said = products("amx", AMX_WRONG="1")
    assert said.startswith("sherry: SHERRY_KERNEL=amx: its results are wrong, the fastest is taken\n")
    assert "not amx: its results are wrong" in said
    assert not any(counts.values())
    for case, result in results.items():
        np.testing.assert_array_equal(result, by_look_up[case], err_msg=case)


def test_it_is_not_taken_where_it_is_slower(products: Run) -> None:
    name, counts, _, said = products("")
    assert name != "amx"
    assert name == "avx512" or re.search(r", not amx: \d+ with 64", said)
    assert not any(counts.values())
