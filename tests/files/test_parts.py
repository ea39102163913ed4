"""A part of a split model says that it is one, and is not treated as a whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from refusals import refused

from sherry_gguf.cli import main
from sherry_gguf.commands import requantize as requantize_command
from sherry_gguf.commands import retag as retag_command
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.gguf_file import Part, open_gguf
from sherry_gguf.files.requantize import requantize
from sherry_gguf.files.retag import retag
from sherry_gguf.formats.table import named

UINT16, INT32, UINT32, FLOAT, BOOL, STRING = 2, 5, 4, 6, 7, 8


@pytest.fixture
def part(build, parts):
    """part(no, count, ...) -> a file with STQ1_0 tensors and the keys; None leaves one out."""

    def make(no, count, no_type=UINT16, count_type=UINT16):
        entries = [parts.entry("general.architecture", STRING, "llama"), parts.entry("split.tensors.count", INT32, 1)]
        for key, type_id, value in (("split.no", no_type, no), ("split.count", count_type, count)):
            if value is not None:
                entries.append(parts.entry(key, type_id, value))
        return build([("a.weight", (512, 8), 43, parts.stq1_0_blocks(8, 512))], entries)

    return make


WAY_OUT = "merge the parts first: `llama-gguf-split --merge FIRST_PART OUTFILE`"


@pytest.mark.parametrize(
    ("change", "ways"),
    [
        (lambda path: retag(path, "42"), retag_command.WAYS),
        (lambda path: retag(path, "43"), retag_command.WAYS),
        (lambda path: retag(path, "42", in_place=True), retag_command.WAYS),
        (lambda path: requantize(path, named("tq2_0")), requantize_command.WAYS),
        (lambda path: requantize(path, named("stq1_0")), requantize_command.WAYS),
    ],
    ids=["retag", "retag nothing", "retag in place", "requantize", "requantize nothing"],
)
def test_a_part_is_not_changed(part, change, ways):
    """Not even where there would be nothing to do: that would be said of a part, not of the model."""
    path = part(1, 3)
    content = path.read_bytes()
    with refused(rf"x\.gguf: is part 2 of 3 of a split model.*; {WAY_OUT}", ways):
        change(path)
    with pytest.raises(SherryError) as caught:
        change(path)
    assert [advice.way for advice in caught.value.ways] == [Way.MERGE]
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("line", [["retag", "--to", "42"], ["requantize", "--outtype", "tq2_0"]])
def test_commands(part, capsys, line):
    path = part(0, 2)
    assert main([*line, str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sherry-gguf {line[0]}: error: {path}: is part 1 of 2 of a split model")
    assert WAY_OUT in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("no", "count"), [(None, None), (0, None), (0, 1), (None, 1), (0, 0)], ids=["", "no", "one", "count", "merged"]
)
def test_a_whole(part, tmp_path, capsys, no, count):
    """As llama-gguf-split leaves the keys in a merged file, and as others may leave them."""
    path = part(no, count)
    assert open_gguf(path).part is None
    assert retag(path, "42", tmp_path / "y.gguf").changed == 1
    assert requantize(path, named("tq2_0"), tmp_path / "z.gguf").tensors == 1
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "the whole file" in said
    assert "part" not in said.removeprefix(str(path))


@pytest.mark.parametrize("type_id", [UINT16, INT32, UINT32])
def test_any_type_of_integer(part, type_id):
    assert open_gguf(part(1, 2, type_id, type_id)).part == Part(2, 2)


def test_inspect(part, capsys):
    path = part(0, 2)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: part 1 of 2, GGUF 3, ")
    assert "│ part 1 of 2 │" in said
    assert "whole" not in said.removeprefix(str(path))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["part"] == {"number": 1, "count": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 2), "split.no is 2, but split.count is 2"),
        ((None, 2), "split.no is missing or no whole number"),
        ((-1, 2, INT32), "split.no is missing or no whole number"),
        ((0.0, 2, FLOAT), "split.no is missing or no whole number"),
        ((0, -1, UINT16, INT32), "split.count is missing or no whole number"),
        ((0, 2.0, UINT16, FLOAT), "split.count is missing or no whole number"),
        ((0, True, UINT16, BOOL), "split.count is missing or no whole number"),
        ((0, "2", UINT16, STRING), "split.count is missing or no whole number"),
    ],
)
@pytest.mark.parametrize("line", [["retag", "--to", "42"], ["requantize", "--outtype", "tq2_0"], ["inspect"]])
def test_damaged_keys(part, capsys, arguments, words, line):
    path = part(*arguments)
    assert main([*line, str(path)]) == 1
    said = capsys.readouterr().err
    assert f"error: {path}: {words}" in said
    assert "the file is damaged" in said
    assert said.count("\n") == 1
    assert list(path.parent.iterdir()) == [path]


def test_damaged_by_an_array(build, parts):
    path = build([("a", (4,), 0, bytes(16))], [parts.array("split.count", UINT16, [2])])
    with pytest.raises(SherryError, match=r"split\.count is missing or no whole number"):
        open_gguf(path)


def test_parts_as_gguf_py_writes_them(pinned_gguf, tmp_path):
    writer = pinned_gguf.GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=1)
    for name in "ab":
        writer.add_tensor(name, np.zeros((4, 64), dtype=np.float32))
    writer.write_header_to_file(tmp_path / "x.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = [open_gguf(path).part for path in sorted(tmp_path.glob("x-*-of-00002.gguf"))]
    assert found == [Part(1, 2), Part(2, 2)]
