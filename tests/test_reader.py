"""A file is opened only if its blocks mean what this package takes them to mean."""

from __future__ import annotations

import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.reader import open_gguf


def write(gguf, path, version):
    writer = gguf.GGUFWriter(path, "llama")
    if version is not None:
        writer.add_uint32("sherry.format_version", version)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("version", [None, 1])
def test_known_versions(pinned_gguf, tmp_path, version):
    assert open_gguf(write(pinned_gguf, tmp_path / "x.gguf", version)).tensors == []


@pytest.mark.parametrize("version", [2, 4_000_000_000])
def test_larger_versions_are_refused(pinned_gguf, tmp_path, version):
    with pytest.raises(SherryError, match=f"sherry.format_version is {version}"):
        open_gguf(write(pinned_gguf, tmp_path / "x.gguf", version))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough to be read as a header"])
def test_what_is_no_gguf(pinned_gguf, tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(SherryError, match=r"x\.gguf: cannot be read as a GGUF file"):
        open_gguf(path)


def test_a_truncated_file(sherry_gguf_file, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(sherry_gguf_file.read_bytes()[:-100_000])
    with pytest.raises(SherryError, match="cannot be read as a GGUF file"):
        open_gguf(path)
