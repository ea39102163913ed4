"""STQ1_0 in llama-quantize and in a model that runs, under either of its ids."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import stq1_oracle as oracle

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

STQ1_0, Q2_0, FILE_TYPE = 43, 42, 513


def run(runtime: llama_cpp.Build, program: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [str(runtime.program(program)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)


@pytest.fixture(scope="module")
def f32_file(runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint as float32. Its weights lie on the other grid, of four consecutive ones."""
    out = tmp_path_factory.mktemp("f32") / "f32.gguf"
    done = run(runtime, "llama-quantize", "--allow-requantize", sherry_gguf_file, out, "F32")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def made(runtime: llama_cpp.Build, f32_file: Path) -> tuple[Path, str]:
    """A file with id 43, and what was said."""
    out = f32_file.with_name("stq1_0.gguf")
    done = run(runtime, "llama-quantize", f32_file, out, "STQ1_0")
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def retagged(gguf: Any, path: Path, old: int, new: int) -> Path:
    """A copy whose tensors of one type have the id of another."""
    out = path.with_name(f"{path.stem}-{new}.gguf")
    shutil.copy(path, out)
    for tensor in gguf.GGUFReader(out, "r+").tensors:
        type_id = tensor.field.parts[4]  # after the length of the name, the name, the number of dimensions, them
        if type_id[0] == old:
            type_id[0] = new
    return out


def tensors(gguf: Any, path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_quantize(pinned_gguf: Any, f32_file: Path, made: tuple[Path, str]) -> None:
    path, said = made
    floats, types = tensors(pinned_gguf, f32_file), set()
    for name, tensor in tensors(pinned_gguf, path).items():
        types.add((name.split(".")[-2], tensor.tensor_type.name))
        if tensor.tensor_type == STQ1_0:
            expected = oracle.quantize(np.asarray(floats[name].data))
            np.testing.assert_array_equal(tensor.data, expected, err_msg=name)
    layers = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert {name for name, kind in types if kind == "STQ1_0"} == set(layers)
    assert ("token_embd", "Q8_0") in types
    reader = pinned_gguf.GGUFReader(path)
    assert reader.get_field("general.file_type").contents() == FILE_TYPE
    assert reader.get_field("sherry.format_version") is None
    # the zeros of the other grid do not stay where they are, and that is said
    assert "blk.0.ffn_down.weight: in " in said
    assert "zeros became weights" in said


def test_weights_on_the_grid_come_back(
    runtime: llama_cpp.Build, pinned_gguf: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    back, again = tmp_path / "back.gguf", tmp_path / "again.gguf"
    assert run(runtime, "llama-quantize", "--allow-requantize", made[0], back, "F32").returncode == 0
    done = run(runtime, "llama-quantize", back, again, "STQ1_0")
    assert done.returncode == 0, done.stderr
    assert "zeros became weights" not in done.stderr
    expected, found = tensors(pinned_gguf, made[0]), tensors(pinned_gguf, again)
    for name, tensor in tensors(pinned_gguf, back).items():
        np.testing.assert_array_equal(found[name].data, expected[name].data, err_msg=name)
        if expected[name].tensor_type == STQ1_0:
            values = oracle.dequantize(np.asarray(expected[name].data))
            np.testing.assert_array_equal(tensor.data, values, err_msg=name)


def test_rows_that_do_not_fit(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    """Rows of 384: a mix falls back, a type asked for by name is refused."""
    source = tmp_path / "odd.gguf"
    reader = pinned_gguf.GGUFReader(f32_file)
    writer = pinned_gguf.GGUFWriter(source, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            array = field.types[0] == pinned_gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)
    odd = {"blk.0.ffn_down.weight": (256, 384), "token_embd.weight": (4096, 384)}
    for tensor in reader.tensors:
        shape = odd.get(tensor.name)
        writer.add_tensor(tensor.name, np.ones(shape, np.float32) if shape else np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    out = tmp_path / "out.gguf"
    done = run(runtime, "llama-quantize", source, out, "STQ1_0")
    assert done.returncode == 0, done.stderr
    assert "ncols    384 not divisible by 256 (required for type  stq1_0) -> falling back to    q4_0" in done.stderr
    done = run(runtime, "llama-quantize", "--token-embedding-type", "stq1_0", source, out, "Q8_0")
    assert done.returncode == 1
    assert "token_embd.weight has rows of 384 weights, and stq1_0's blocks have 256" in done.stderr


def test_activations_are_no_type_of_a_file(runtime: llama_cpp.Build, f32_file: Path, tmp_path: Path) -> None:
    done = run(runtime, "llama-quantize", "--tensor-type", "ffn_down=q8_stq1_0", f32_file, tmp_path / "o.gguf", "Q8_0")
    assert done.returncode == 1
    assert "invalid ggml_type 'q8_stq1_0'" in done.stderr


def logits(runtime: llama_cpp.Build, model: Path, *flags: str) -> npt.NDArray[np.float32]:
    """float32[64, vocabulary]"""
    tokens, out = model.with_suffix(".tokens"), model.with_suffix(".logits")
    np.random.default_rng(0).integers(0, 4096, 64).astype(np.int32).tofile(tokens)
    done = run(runtime, "sherry-logits", "-m", model, "-c", "64", "-t", "2", *flags, "-o", out, tokens)
    assert done.returncode == 0, done.stderr
    data = out.read_bytes()
    assert data[:8] == b"SHLOGITS"
    return np.frombuffer(data, np.float32, offset=16).reshape(struct.unpack("<ii", data[8:16])[::-1])


def test_both_ids_give_the_same_logits(
    runtime: llama_cpp.Build, pinned_gguf: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    old = retagged(pinned_gguf, made[0], STQ1_0, Q2_0)
    assert old.read_bytes() != made[0].read_bytes()
    results = {}
    for flags in ([], ["--no-repack"]):
        new = logits(runtime, made[0], *flags)
        assert np.isfinite(new).all()
        np.testing.assert_array_equal(logits(runtime, old, *flags), new)
        results[len(flags)] = new

    # Tiles and rows add the same integers in different orders: rarely an activation is rounded to another int8. That is
    # less than what rounding activations to int8 changes beside the very weights as float32.
    back = tmp_path / "back.gguf"
    assert run(runtime, "llama-quantize", "--allow-requantize", made[0], back, "F32").returncode == 0
    rounding = np.abs(results[0] - logits(runtime, back)).max()
    assert np.abs(results[0] - results[1]).max() <= rounding
    assert rounding < 0.1 * results[0].std()


def test_llama_quantize_reads_either_id(
    runtime: llama_cpp.Build, pinned_gguf: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    """And writes 43."""
    old = retagged(pinned_gguf, made[0], STQ1_0, Q2_0)
    done = run(runtime, "llama-quantize", old, tmp_path / "copy.gguf", "COPY")
    assert done.returncode == 0, done.stderr
    expected, found = tensors(pinned_gguf, made[0]), tensors(pinned_gguf, tmp_path / "copy.gguf")
    for name, tensor in expected.items():
        assert found[name].tensor_type == tensor.tensor_type
        np.testing.assert_array_equal(found[name].data, tensor.data)


def test_a_model_in_q2_0_loads_as_before(
    runtime: llama_cpp.Build, pinned_gguf: Any, f32_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q2_0.gguf"
    done = run(runtime, "llama-quantize", f32_file, path, "Q2_0")
    assert done.returncode == 0, done.stderr
    assert Q2_0 in {tensor.tensor_type for tensor in tensors(pinned_gguf, path).values()}
    done = run(runtime, "llama-quantize", "--allow-requantize", path, tmp_path / "back.gguf", "F32")
    assert done.returncode == 0, done.stderr
    assert "STQ1_0" not in done.stdout + done.stderr
    for name, tensor in tensors(pinned_gguf, path).items():
        values = pinned_gguf.dequantize(tensor.data, tensor.tensor_type) if tensor.tensor_type == Q2_0 else None
        if values is not None:
            np.testing.assert_array_equal(tensors(pinned_gguf, tmp_path / "back.gguf")[name].data, values)
    assert np.isfinite(logits(runtime, path)).all()


def test_a_cut_model_is_refused(
    runtime: llama_cpp.Build, pinned_gguf: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    for path in (made[0], retagged(pinned_gguf, made[0], STQ1_0, Q2_0)):
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[:-1000])
        done = run(runtime, "llama-quantize", cut, tmp_path / "out.gguf", "COPY")
        assert done.returncode == 1
        assert "data is not within the file bounds" in done.stderr
