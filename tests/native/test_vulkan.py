"""The types of Sherry on a GPU through Vulkan, against the CPU: operators, logits, and layers on both at once.

Mesa's llvmpipe, which runs the shaders on the processor, will do for a device. `make test-gpu` runs this file alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Source
from sherry_gguf.cli import main
from sherry_gguf.convert import convert
from sherry_gguf.convert.type_choice import TypeChoice
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.gpu import gpu_defines, vulkan_paths
from sherry_gguf.parity import runtime as logits_of
from sherry_gguf.parity.scoring import Meter
from sherry_gguf.weights.granularity import Granularity

pytestmark = pytest.mark.runtime

TYPES = ("sherry", "sherry_g32", "sherry_2p", "stq1_0")
ALL_LAYERS = 99
CTX = 128
HERE = Path(__file__).parent
SHORT = ("--chunks", 2, "-c", CTX, "-v")
PROGRAMS = ("test-backend-ops", "sherry-logits", "llama-perplexity")


@pytest.fixture(scope="module")
def device() -> Iterator[None]:
    """The first device of Vulkan, the processor too where there is no other: llama.cpp leaves that out unasked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGML_VK_VISIBLE_DEVICES", os.environ.get("GGML_VK_VISIBLE_DEVICES", "0"))
        yield


@pytest.fixture(scope="module")
def build(device: None) -> llama_cpp.Build:
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    try:
        defines = gpu_defines("vulkan")
    except SherryError as error:
        give_up(str(error))
    if shutil.which("vulkaninfo") is None or subprocess.run(["vulkaninfo"], capture_output=True).returncode != 0:
        give_up("vulkaninfo shows no device (Debian: `apt install mesa-vulkan-drivers vulkan-tools`)")
    built = llama_cpp.build(PROGRAMS, defines=defines)
    paths = [f"{name} {'yes' if compiles else 'no'}" for name, compiles in vulkan_paths(built.source).items()]
    print(f"\noptional shaders of Vulkan: {', '.join(paths)}")
    return built


@pytest.fixture(scope="module")
def files(
    runtime: llama_cpp.Build, pinned_gguf: Any, tiny_checkpoint: Path, sherry_gguf_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """The shipped checkpoint in each type; STQ1_0 has other groups, so that its weights are others."""
    folder = tmp_path_factory.mktemp("vulkan")
    by_32 = Source(tiny_checkpoint, granularity=Granularity("per_group", 32))
    two_planes = TypeChoice(outtype="sherry_2p")
    f32, stq = folder / "f32.gguf", folder / "stq.gguf"
    for arguments in (["--allow-requantize", sherry_gguf_file, f32, "F32"], [f32, stq, "STQ1_0"]):
        subprocess.run([runtime.program("llama-quantize"), *arguments], check=True, capture_output=True)
    return {
        "sherry": sherry_gguf_file,
        "sherry_g32": convert(by_32, folder / "g32.gguf").outfile,
        "sherry_2p": convert(tiny_checkpoint, folder / "2p.gguf", types=two_planes).outfile,
        "stq1_0": stq,
    }


@pytest.fixture(scope="module")
def left_out(build: llama_cpp.Build) -> str:
    """A pattern of test-backend-ops: not the product that Mesa's llvmpipe has wrong with its cooperative matrices.

    It is that of one row by 64 tokens, which comes out wrong there for every quantized type, Q4_0 too.
    """
    no_case = run(build, "test-backend-ops", "test", "-b", "Vulkan0", "-o", "CPY", "-p", "^$")
    return "(?!.*m=1,n=64,)" if re.search("llvmpipe.* matrix cores: KHR_coopmat", no_case) else ""


@pytest.fixture(scope="module")
def integer_dot(build: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings with which matrices are multiplied by integer dot products, whatever the device would rather do."""
    if not vulkan_paths(build.source)["integer_dot"]:
        pytest.skip("glslc does not know integer dot products (Debian: 13 and later)")
    library = tmp_path_factory.mktemp("integer_dot") / "integer_dot.so"
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, HERE / "integer_dot.c", "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "GGML_VK_DISABLE_COOPMAT": "1", "GGML_VK_FORCE_MMVQ": "1"}


@pytest.fixture(params=["floats", "integers"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the device multiplies: as it does by itself, where that is by integers too, or by integers."""
    if request.param == "integers":
        for name, value in request.getfixturevalue("integer_dot").items():
            monkeypatch.setenv(name, value)
    return str(request.param)


def run(build: llama_cpp.Build, program: str, *arguments: Any) -> str:
    command = [str(part) for part in (build.program(program), *arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("operator", ["GET_ROWS", "CPY"])
def test_copies_equal_those_of_the_cpu(build: llama_cpp.Build, operator: str, kind: str) -> None:
    of_type = {"CPY": rf"type_src={kind},type_dst=f32", "GET_ROWS": f"type={kind},"}
    check_operator(build, operator, of_type[operator])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("operator", ["MUL_MAT", "MUL_MAT_ID"])
def test_products_equal_those_of_the_cpu(
    build: llama_cpp.Build, products: str, left_out: str, operator: str, kind: str
) -> None:
    by_integers = products == "integers"
    output = check_operator(build, operator, f"type_a={kind},{'' if by_integers else left_out}")
    assert not by_integers or re.search("int dot: 1 .* matrix cores: none", output)


def check_operator(build: llama_cpp.Build, operator: str, of_type: str) -> str:
    output = run(build, "test-backend-ops", "test", "-b", "Vulkan0", "-o", operator, "-p", of_type)
    passed = re.search(r"(\d+)/(\d+) tests passed", output)
    assert passed is not None, output[-2000:]
    assert passed[1] == passed[2] != "0"
    return output


@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_those_of_the_cpu(
    build: llama_cpp.Build,
    runtime: llama_cpp.Build,
    files: dict[str, Path],
    heldout_text: Path,
    products: str,
    kind: str,
) -> None:
    """Each rounds activations in its own way: the CPU to 8 bits with a scale for 128, the GPU to halves, where its
    matrices have them, or to 8 bits with a scale for 32."""
    tokens = logits_of.tokenize(runtime.program("llama-tokenize"), files[kind], heldout_text)
    chunks = tokens[: 4 * CTX].reshape(4, CTX)
    meter, squares, errors = Meter(), 0.0, 0.0
    program = "sherry-logits"
    with (
        logits_of.open_logits(runtime.program(program), files[kind], CTX, 0, threads=2) as on_cpu,
        logits_of.open_logits(
            build.program(program), files[kind], CTX, 0, threads=2, options=["-ngl", str(ALL_LAYERS)]
        ) as on_gpu,
    ):
        for chunk in chunks:
            want, got = on_cpu(chunk), on_gpu(chunk)
            squares += float(np.square(want).sum())
            errors += float(np.square(got - want).sum())
            meter.add(want[:-1], got[:-1], chunk[1:])
    result = meter.result()
    assert 0 < errors / squares < 1e-3
    assert abs(result.perplexity_change) < 0.2


# flags, and whether the CPU and the GPU have layers of the model then
PLACES = {
    "none on the GPU": (["-ngl", 0], True, False),
    "some on the GPU": (["-ngl", 3], True, True),
    "all on the GPU": (["-ngl", ALL_LAYERS], False, True),
    "all but one layer's": (["-ngl", ALL_LAYERS, "--override-tensor", r"blk\.1\.=CPU"], True, True),
}


@pytest.fixture(scope="module")
def on_cpu(runtime: llama_cpp.Build, files: dict[str, Path], heldout_text: Path) -> float:
    """The perplexity of a build without a GPU."""
    return perplexity(run(runtime, "llama-perplexity", "-m", files["sherry"], "-f", heldout_text, *SHORT))


@pytest.mark.parametrize("place", PLACES)
def test_layers_that_stay_on_the_cpu_are_repacked(
    build: llama_cpp.Build, files: dict[str, Path], heldout_text: Path, on_cpu: float, place: str
) -> None:
    """As in a build without a GPU: as rows in the GPU's host memory they would be slow. And nothing between them goes
    to the GPU and back: a prompt's graph is split where a token's is."""
    options, has_cpu, has_gpu = PLACES[place]
    log = run(build, "llama-perplexity", "-m", files["sherry"], "-f", heldout_text, *SHORT, *options)
    assert ("CPU_SHERRY model buffer" in log) == has_cpu
    assert bool(re.search(r"Vulkan0 model buffer", log)) == has_gpu
    assert not re.search(r"Vulkan_Host model buffer size = +[1-9]\d", log)
    assert re.search(r"\bsplits = \d+,", log)  # not 40 / 1
    assert perplexity(log) == pytest.approx(on_cpu, rel=2e-3)


def perplexity(log: str) -> float:
    found = re.search(r"Final estimate: PPL = ([\d.]+)", log)
    assert found is not None, log[-2000:]
    return float(found[1])


def test_the_command_says_what_glslc_left_out(
    build: llama_cpp.Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sherry_gguf.commands.build.remember", lambda *_: None)
    assert main(["build", "--gpu", "vulkan", *(f"--target={name}" for name in PROGRAMS)]) == 0
    done = capsys.readouterr()
    assert str(build.bin_dir) in done.out
    left_out = [name for name, compiles in vulkan_paths(build.source).items() if not compiles]
    assert f"left out: {', '.join(left_out) or 'none'}" in done.err
