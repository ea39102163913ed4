"""A model in parts: together they hold what one file does, all or none are there, and llama.cpp loads the first."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Source
from sherry_gguf.convert import convert, pipeline
from sherry_gguf.convert.parts import parse_size
from sherry_gguf.convert.vocab_only import convert_vocabulary
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import Part, open_gguf
from sherry_gguf.parity import runtime as programs

pytestmark = pytest.mark.usefixtures("pinned_gguf")

SIZE = 700_000


@pytest.fixture(scope="module")
def in_parts(pinned_gguf, tiny_checkpoint, tmp_path_factory):
    return convert(tiny_checkpoint, tmp_path_factory.mktemp("parts") / "tiny.gguf", part_bytes=SIZE)


def test_sizes_are_written_as_upstream_reads_them():
    assert [parse_size(text) for text in ("7", "7K", "7M", "7G")] == [7, 7_000, 7_000_000, 7_000_000_000]
    for text in ("", "0", "0G", "-1", "1k", "1.5G", "1GB", "G"):
        with pytest.raises(SherryError, match="is no size of a part"):
            parse_size(text)


def test_parts_hold_what_one_file_does(in_parts, sherry_gguf_file):
    whole = {tensor.name: tensor for tensor in open_gguf(sherry_gguf_file).tensors}
    parts = [open_gguf(file) for file in in_parts.files]
    assert len(parts) > 2
    assert [file.name for file in in_parts.files] == [
        f"tiny-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)
    ]
    assert [part.part for part in parts] == [Part(number, len(parts)) for number in range(1, len(parts) + 1)]
    found = [tensor for part in parts for tensor in part.tensors]
    assert [tensor.name for tensor in found] == list(whole)
    for tensor in found:
        assert tensor.type_name == whole[tensor.name].type_name
        assert np.array_equal(tensor.stored, whole[tensor.name].stored)
    for part in parts:
        assert len(part.tensors) == 1 or sum(tensor.n_bytes for tensor in part.tensors) <= SIZE
    assert in_parts.outfile == in_parts.files[0]
    assert "42 SHERRY tensors" in str(in_parts.verdict)


def test_a_model_smaller_than_a_part_is_one_file(tiny_checkpoint, tmp_path, sherry_gguf_file):
    conversion = convert(tiny_checkpoint, tmp_path / "x.gguf", part_bytes=10**9)
    assert list(conversion.files) == [conversion.outfile] == list(tmp_path.iterdir())
    assert conversion.outfile.read_bytes() == sherry_gguf_file.read_bytes()


def test_a_damaged_part_is_found(tiny_checkpoint, tmp_path, monkeypatch):
    write = pipeline._write

    def damage(job, instance, files, progress):
        write(job, instance, files, progress)
        content = bytearray(files[-1].read_bytes())
        content[-100] ^= 1
        files[-1].write_bytes(content)

    monkeypatch.setattr(pipeline, "_write", damage)
    with pytest.raises(SherryError, match=r"of the file is not what was trained|bytes are not the checkpoint's"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", part_bytes=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_an_interrupted_conversion_leaves_no_part(error, tiny_checkpoint, tmp_path, monkeypatch):
    seen = []

    def stop(files, exact):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise error("stopped")

    monkeypatch.setattr(pipeline, "require_finite", stop)
    with pytest.raises((error, SherryError), match="stopped"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", part_bytes=SIZE)
    assert len(seen) > 2
    assert not list(tmp_path.iterdir())


def test_parts_that_are_there_are_not_replaced(tiny_checkpoint, tmp_path, in_parts):
    last = tmp_path / in_parts.files[-1].name
    last.write_bytes(b"another")
    with pytest.raises(SherryError, match=f"{last.name} exists"):
        convert(tiny_checkpoint, tmp_path / "tiny.gguf", part_bytes=SIZE)
    assert list(tmp_path.iterdir()) == [last]
    assert last.read_bytes() == b"another"
    convert(tiny_checkpoint, tmp_path / "tiny.gguf", part_bytes=SIZE, force=True)
    for file in in_parts.files:
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_part_that_comes_meanwhile_undoes_the_others(tiny_checkpoint, tmp_path, monkeypatch, in_parts):
    first, load = tmp_path / in_parts.files[0].name, pipeline.load

    def come(files, names):
        first.write_bytes(b"another")
        return load(files, names)

    monkeypatch.setattr(pipeline, "load", come)
    with pytest.raises(SherryError, match=f"{first.name} exists"):
        convert(tiny_checkpoint, tmp_path / "tiny.gguf", part_bytes=SIZE)
    assert list(tmp_path.iterdir()) == [first]
    assert first.read_bytes() == b"another"


def test_llama_cpp_loads_the_parts(runtime, tiny_checkpoint, tmp_path, sherry_gguf_file, heldout_text):
    conversion = convert(tiny_checkpoint, tmp_path / "x.gguf", part_bytes=SIZE)
    assert conversion.loaded == (runtime.bin_dir == llama_cpp.find_build().bin_dir)
    program, tokens = runtime.program("sherry-logits"), np.arange(3, 67, dtype=np.int32)
    whole, parts = (
        programs.open_logits(program, file, 64, 0, threads=1) for file in (sherry_gguf_file, conversion.outfile)
    )
    with whole as of_whole, parts as of_parts:
        assert np.array_equal(of_whole(tokens), of_parts(tokens))


def test_metadata_of_a_file_win(tiny_checkpoint, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps({"general.author": "Somebody", "general.license.name": "mit"}))
    outfile = convert(tiny_checkpoint, tmp_path / "x.gguf", metadata=tmp_path / "metadata.json").outfile
    assert open_gguf(outfile).value("general.author") == "Somebody"
    assert open_gguf(outfile).value("general.license.name") == "mit"


def test_a_vocabulary_alone(tiny_checkpoint, tmp_path, sherry_gguf_file):
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).write_bytes(path.read_bytes())
    written = convert_vocabulary(Source(model), tmp_path / "v.gguf")
    whole, alone = open_gguf(sherry_gguf_file), open_gguf(written.outfile)
    assert not alone.tensors
    for key in whole.header.entries:
        if key.startswith(("tokenizer.", "llama.", "hunyuan", "qwen")):
            assert alone.value(key) == whole.value(key), key
    assert {key for key in whole.header.entries if key.startswith("tokenizer.")} <= set(alone.header.entries)
    assert written.tokens == 4096
    with pytest.raises(SherryError, match="exists"):
        convert_vocabulary(Source(model), tmp_path / "v.gguf")


def test_llama_cpp_reads_a_vocabulary_alone(runtime, tiny_checkpoint, tmp_path, sherry_gguf_file, heldout_text):
    program = runtime.program("llama-tokenize")
    written = convert_vocabulary(Source(tiny_checkpoint), tmp_path / "v.gguf")
    alone, whole = (programs.tokenize(program, file, heldout_text) for file in (written.outfile, sherry_gguf_file))
    assert np.array_equal(alone, whole)
