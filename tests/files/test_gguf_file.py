"""A file is opened only if its blocks mean what this package takes them to mean."""

from __future__ import annotations

import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf


def write(gguf, path, version):
    writer = gguf.GGUFWriter(path, "llama")
    if version is not None:
        writer.add_uint32("sherry.format_version", version)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("version", [None, 1, 2])
def test_known_versions(pinned_gguf, tmp_path, version):
    assert open_gguf(write(pinned_gguf, tmp_path / "x.gguf", version)).tensors == []


@pytest.mark.parametrize("version", [3, 4_000_000_000])
def test_larger_versions_are_refused(pinned_gguf, tmp_path, version):
    with pytest.raises(SherryError, match=f"sherry.format_version is {version}"):
        open_gguf(write(pinned_gguf, tmp_path / "x.gguf", version))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty, no GGUF file"),
        (b"GGUF", "ends in its header"),
        (b"not a model at all, but long enough to be read as a header", "is no GGUF file: it begins with"),
    ],
)
def test_what_is_no_gguf(pinned_gguf, tmp_path, content, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(SherryError, match=rf"x\.gguf: {words}"):
        open_gguf(path)


def test_a_truncated_file(sherry_gguf_file, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(sherry_gguf_file.read_bytes()[:-100_000])
    with pytest.raises(SherryError, match=r"short\.gguf: .* is it truncated\?"):
        open_gguf(path)
