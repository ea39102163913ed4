"""llama-quantize and the loader: baked weights come back byte for byte, and what cannot be read is refused."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.formats import sherry_2p, sherry_g32
from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.table import VERSION_KEY
from sherry_gguf.weights.two_planes import round_planes

pytestmark = pytest.mark.runtime

VERSION = 1  # what the C code writes beside SHERRY
LATEST = 2  # the largest that it reads


def write_f32(
    gguf: Any,
    original: Path,
    out: Path,
    replace: dict[str, npt.NDArray[np.float32]] | None = None,
    hyperparameters: dict[str, int] | None = None,
) -> Path:
    """The same model with every tensor as float32; some of them replaced, some hyperparameters (uint32) added."""
    reader = gguf.GGUFReader(original)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", VERSION_KEY):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)
    for key, value in (hyperparameters or {}).items():
        writer.add_uint32(f"{writer.arch}.{key}", value)
    for tensor in reader.tensors:
        values = (replace or {}).get(tensor.name)
        if values is None:
            is_sherry = tensor.tensor_type == SHERRY.type_id
            dequantized = SHERRY.dequantize(tensor.data) if is_sherry else None
            values = gguf.dequantize(tensor.data, tensor.tensor_type) if dequantized is None else dequantized
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def f32_file(pinned_gguf: Any, sherry_gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_f32(pinned_gguf, sherry_gguf_file, tmp_path_factory.mktemp("f32") / "f32.gguf")


def quantize(runtime: llama_cpp.Build, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [runtime.program("llama-quantize"), *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


def tensors(gguf: Any, path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def write_imatrix(path: Path, sizes: dict[str, int]) -> Path:
    """llama-imatrix's first format: for each tensor its name, the calls (1) and a sum of squares per column."""
    rng = np.random.default_rng(0)
    data = struct.pack("<i", len(sizes))
    for name, size in sizes.items():
        values = rng.exponential(1, size).astype("<f4").tobytes()
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, size) + values
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("importance", [False, True])
def test_weights_on_the_grid_come_back(
    runtime: llama_cpp.Build, pinned_gguf: Any, sherry_gguf_file: Path, f32_file: Path, tmp_path: Path, importance: bool
) -> None:
    expected = tensors(pinned_gguf, sherry_gguf_file)
    flags: list[Path | str] = []
    if importance:
        sizes = {name: int(t.shape[0]) for name, t in expected.items() if t.tensor_type == SHERRY.type_id}
        flags = ["--imatrix", write_imatrix(tmp_path / "imatrix.dat", sizes)]
    done = quantize(runtime, *flags, f32_file, tmp_path / "out.gguf", "SHERRY")
    assert done.returncode == 0, done.stderr
    assert ("importance matrix data with" in done.stdout + done.stderr) is importance

    made = tensors(pinned_gguf, tmp_path / "out.gguf")
    assert {name: t.tensor_type for name, t in made.items()} == {name: t.tensor_type for name, t in expected.items()}
    sherry = [name for name, t in made.items() if t.tensor_type == SHERRY.type_id]
    assert len(sherry) == 7 * 6
    for name in sherry:
        np.testing.assert_array_equal(made[name].data, expected[name].data, err_msg=name)
    reader = pinned_gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.get_field(VERSION_KEY).contents() == VERSION
    assert reader.get_field("general.file_type").contents() == SHERRY.file_type


def test_back_to_float(
    runtime: llama_cpp.Build, pinned_gguf: Any, sherry_gguf_file: Path, f32_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    refused = quantize(runtime, sherry_gguf_file, out, "F32")
    assert refused.returncode != 0
    assert "requantizing from type" in refused.stderr
    assert quantize(runtime, "--allow-requantize", sherry_gguf_file, out, "F32").returncode == 0
    made, expected = tensors(pinned_gguf, out), tensors(pinned_gguf, f32_file)
    for name, tensor in made.items():
        np.testing.assert_array_equal(tensor.data, expected[name].data, err_msg=name)
    assert pinned_gguf.GGUFReader(out).get_field(VERSION_KEY) is None


def test_types_asked_for_win(runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path) -> None:
    flags = ("--token-embedding-type", "q4_0", "--output-tensor-type", "q4_0", "--tensor-type", "ffn_down=sherry")
    done = quantize(runtime, *flags, f32_file, tmp_path / "out.gguf", "Q8_0")
    assert done.returncode == 0, done.stderr
    made = tensors(pinned_gguf, tmp_path / "out.gguf")
    assert made["token_embd.weight"].tensor_type.name == "Q4_0"
    assert made["blk.0.ffn_down.weight"].tensor_type == SHERRY.type_id
    assert made["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"
    assert pinned_gguf.GGUFReader(tmp_path / "out.gguf").get_field(VERSION_KEY).contents() == VERSION


def test_rows_that_do_not_fit_fall_back_and_say_so(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    odd = {"blk.0.ffn_down.weight": np.ones((256, 192), dtype=np.float32)}
    source = write_f32(pinned_gguf, f32_file, tmp_path / "odd.gguf", odd)
    done = quantize(runtime, source, tmp_path / "out.gguf", "SHERRY")
    assert done.returncode == 0, done.stderr
    assert "ncols    192 not divisible by 128 (required for type  sherry) -> falling back to    q4_0" in done.stderr
    assert tensors(pinned_gguf, tmp_path / "out.gguf")["blk.0.ffn_down.weight"].tensor_type.name == "Q4_0"


@pytest.mark.parametrize("mode", [[], ["--dry-run"]], ids=["", "dry-run"])
def test_rows_that_do_not_fit_a_type_asked_for_are_refused(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path, mode: list[str]
) -> None:
    odd = {"token_embd.weight": np.ones((4096, 576), dtype=np.float32)}
    source = write_f32(pinned_gguf, f32_file, tmp_path / "odd.gguf", odd)
    done = quantize(runtime, *mode, "--token-embedding-type", "sherry", source, tmp_path / "out.gguf", "Q8_0")
    assert done.returncode == 1
    assert "token_embd.weight has rows of 576 weights, and sherry's blocks have 128" in done.stderr


def test_activations_are_no_type_of_a_file(runtime: llama_cpp.Build, f32_file: Path, tmp_path: Path) -> None:
    done = quantize(runtime, "--tensor-type", "ffn_down=q8_sherry", f32_file, tmp_path / "out.gguf", "Q8_0")
    assert done.returncode == 1
    assert "invalid ggml_type 'q8_sherry'" in done.stderr


def test_no_layer_of_a_mixture_of_experts_is_raised(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    """Upstream's mixes raise attention layers where there are 8 experts."""
    experts = {"expert_count": 8, "expert_used_count": 2}
    source = write_f32(pinned_gguf, f32_file, tmp_path / "experts.gguf", hyperparameters=experts)
    done = quantize(runtime, "--dry-run", source, tmp_path / "out.gguf", "SHERRY")
    assert done.returncode == 0, done.stderr
    types = dict(re.findall(r"\] +(\S+) +- .*MiB \((\w+)\)$", done.stdout + done.stderr, re.MULTILINE))
    assert types.pop("token_embd.weight") == "q8_0"
    assert len(types) == 7 * 6
    assert set(types.values()) == {"sherry"}


def test_scales_that_fp16_cannot_hold_are_refused(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    large = {"blk.0.ffn_down.weight": np.full((256, 768), 1e6, dtype=np.float32)}
    source = write_f32(pinned_gguf, f32_file, tmp_path / "large.gguf", large)
    done = quantize(runtime, source, tmp_path / "out.gguf", "SHERRY")
    assert done.returncode == 1
    assert "ggml_validate_sherry: scale of block 0 is not finite" in done.stderr


def test_weights_that_change_are_counted(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    weights = np.tile(np.array([0, 1, 1, 1], dtype=np.float32), (256, 192))
    unchanged = write_f32(pinned_gguf, f32_file, tmp_path / "unchanged.gguf", {"blk.0.ffn_down.weight": weights})
    assert "zeros became weights" not in quantize(runtime, unchanged, tmp_path / "out.gguf", "SHERRY").stderr
    weights[7, :8] = 0
    source = write_f32(pinned_gguf, f32_file, tmp_path / "zeros.gguf", {"blk.0.ffn_down.weight": weights})
    done = quantize(runtime, source, tmp_path / "out.gguf", "SHERRY")
    assert done.returncode == 0, done.stderr
    assert "blk.0.ffn_down.weight: in 2 groups of 4, zeros became weights" in done.stderr


def test_a_later_format_is_refused(runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path: Path) -> None:
    data = bytearray(sherry_gguf_file.read_bytes())
    value = data.index(VERSION_KEY.encode()) + len(VERSION_KEY) + 4  # after the type of the value
    assert struct.unpack_from("<I", data, value) == (VERSION,)
    struct.pack_into("<I", data, value, LATEST + 1)
    later = tmp_path / "later.gguf"
    later.write_bytes(data)
    done = quantize(runtime, later, tmp_path / "out.gguf", "COPY")
    assert done.returncode == 1
    assert f"{VERSION_KEY} is {LATEST + 1}, this program reads up to {LATEST}" in done.stderr


@pytest.mark.parametrize("type_id", [44, 100, 511, 513, 514, 515, 516, 519, 522, -1])
def test_a_type_that_is_not_known_is_refused_in_words(
    runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path: Path, type_id: int
) -> None:
    name = b"blk.0.attn_q.weight"
    data = bytearray(sherry_gguf_file.read_bytes())
    field = data.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and two of them
    assert struct.unpack_from("<i", data, field) == (SHERRY.type_id,)
    struct.pack_into("<i", data, field, type_id)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    done = quantize(runtime, damaged, tmp_path / "out.gguf", "COPY")
    assert done.returncode == 1
    assert f"tensor '{name.decode()}' has" in done.stderr
    assert f"type {type_id}" in done.stderr


def test_scales_per_32(runtime: llama_cpp.Build, pinned_gguf: Any, sherry_gguf_file: Path, tmp_path: Path) -> None:
    """Rows of 96 that SHERRY has no blocks for, and the version that keeps older programs from reading the file."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (256, 24), dtype=np.uint8)
    packed = sherry_g32.BLOCKS.pack(codes, rng.uniform(0.01, 1, (256, 3)).astype(np.float32))
    weights = sherry_g32.SHERRY_G32.dequantize(packed)
    source = write_f32(pinned_gguf, sherry_gguf_file, tmp_path / "f32.gguf", {"blk.0.ffn_down.weight": weights})
    done = quantize(runtime, source, tmp_path / "out.gguf", "SHERRY_G32")
    assert done.returncode == 0, done.stderr
    assert "zeros became weights" not in done.stderr
    made = tensors(pinned_gguf, tmp_path / "out.gguf")
    assert {t.tensor_type for name, t in made.items() if name.startswith("blk.") and len(t.shape) == 2} == {520}
    np.testing.assert_array_equal(sherry_g32.SHERRY_G32.dequantize(made["blk.0.ffn_down.weight"].data), weights)
    reader = pinned_gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.get_field(VERSION_KEY).contents() == 2
    assert reader.get_field("general.file_type").contents() == sherry_g32.SHERRY_G32.file_type
    mixed = quantize(runtime, "--tensor-type", "ffn_up=sherry_g32", source, tmp_path / "mixed.gguf", "SHERRY")
    assert mixed.returncode == 0, mixed.stderr
    assert pinned_gguf.GGUFReader(tmp_path / "mixed.gguf").get_field(VERSION_KEY).contents() == 2


def test_two_planes(runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path) -> None:
    """What is two planes stays so; what is not is refused, or rounded with an importance matrix, as in NumPy."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (2, 256, 192), dtype=np.uint8)
    d = rng.uniform(0.01, 0.1, (2, 256, 6)).astype(np.float16)
    exact = sherry_2p.SHERRY_2P.dequantize(sherry_2p.pack_planes(*codes, *d))
    down = "blk.0.ffn_down.weight"
    source = write_f32(pinned_gguf, f32_file, tmp_path / "exact.gguf", {down: exact})
    done = quantize(runtime, source, tmp_path / "out.gguf", "SHERRY_2P")
    assert done.returncode == 0, done.stderr
    reader = pinned_gguf.GGUFReader(tmp_path / "out.gguf")
    made = {tensor.name: tensor for tensor in reader.tensors}
    assert made[down].tensor_type == sherry_2p.SHERRY_2P.type_id
    np.testing.assert_array_equal(sherry_2p.SHERRY_2P.dequantize(made[down].data), exact)
    assert reader.get_field(VERSION_KEY).contents() == LATEST
    assert reader.get_field("general.file_type").contents() == sherry_2p.SHERRY_2P.file_type

    plain = rng.standard_normal((256, 768)).astype(np.float32)
    source = write_f32(pinned_gguf, f32_file, tmp_path / "plain.gguf", {down: plain})
    refused = quantize(runtime, source, tmp_path / "refused.gguf", "SHERRY_2P")
    assert refused.returncode != 0
    assert f"{down}: 196608 of 196608 weights are no sums of two planes" in refused.stderr
    assert "`sherry-gguf convert --calibrate`" in refused.stderr
    sizes = {name: int(t.shape[0]) for name, t in made.items() if t.tensor_type == sherry_2p.SHERRY_2P.type_id}
    imatrix = write_imatrix(tmp_path / "imatrix.dat", sizes)
    done = quantize(runtime, "--imatrix", imatrix, source, tmp_path / "rounded.gguf", "SHERRY_2P")
    assert done.returncode == 0, done.stderr
    found = tensors(pinned_gguf, tmp_path / "rounded.gguf")
    rng = np.random.default_rng(0)  # as write_imatrix draws them
    importance = {name: rng.exponential(1, size).astype(np.float32) for name, size in sizes.items()}[down]
    np.testing.assert_array_equal(found[down].data[:32], round_planes(plain[:32], importance))
    for name in sizes:
        if name != down:
            np.testing.assert_array_equal(found[name].data, made[name].data, err_msg=name)
