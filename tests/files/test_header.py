"""The header is read as it is; whatever does not hold together is one line, and costs no more than the file."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.files.header import read_header
from sherry_gguf.files.identify import find_types


def small(parts, **options):
    tensors = [
        ("first.weight", (256, 4), 43, parts.stq1_0_blocks(4, 256)),
        ("second.weight", (3, 2), 0, parts.f32(2, 3)),
        ("third", (), 0, parts.f32(1, 1)),
    ]
    return parts.gguf_bytes(tensors, **options)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 64, 128])
def test_all_of_it(build, parts, version, alignment):
    scalars = [
        (0, 200), (1, -3), (2, 60000), (3, -300), (4, 4_000_000_000), (5, -70000), (6, 0.5), (7, True),
        (10, 1 << 63), (11, -(1 << 62)), (12, 1e300),
    ]  # fmt: skip
    entries = [parts.entry(f"scalar.{type_id}", type_id, content) for type_id, content in scalars]
    entries += [parts.array(f"array.{type_id}", type_id, [content] * 3) for type_id, content in scalars]
    entries += [parts.entry("text", 8, "Grüße"), parts.array("texts", 8, ["", "b", "ü"]), parts.array("none", 8, [])]
    tensors = [
        ("a", (256, 2, 3), 43, parts.stq1_0_blocks(6, 256)),
        ("b", (5,), 0, parts.f32(1, 5)),
        ("c", (), 0, b"1234"),
    ]
    header = read_header(build(tensors, entries, alignment=alignment, version=version))

    assert (header.version, header.alignment) == (version, alignment)
    assert {key: header.value(key) for key in list(header.entries)[:11]} == {f"scalar.{i}": v for i, v in scalars}
    assert header.value("text") == "Grüße"
    assert header.value("texts") is None
    assert header.value("missing") is None
    starts = [entry.start for entry in header.entries.values()]
    assert starts == [24, *(entry.stop for entry in header.entries.values())][:-1]
    assert [(t.name, t.shape, t.type_id, t.weights, t.row) for t in header.tensors] == [
        ("a", (256, 2, 3), 43, 1536, 256), ("b", (5,), 0, 5, 5), ("c", (), 0, 1, 1),
    ]  # fmt: skip
    for tensor, (_, _, type_id, content) in zip(header.tensors, tensors, strict=True):
        assert bytes(header.data[tensor.start :][: len(content)]) == content
        assert int.from_bytes(header.data[tensor.id_at : tensor.id_at + 4].tobytes(), "little") == type_id


def test_the_same_as_gguf_py(sherry_gguf_file, pinned_gguf):
    """On a file whose ids tell the truth, both readers see the same."""
    header, reader = read_header(sherry_gguf_file), pinned_gguf.GGUFReader(sherry_gguf_file)
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for typed, expected in zip(find_types(header), reader.tensors, strict=True):
        tensor = typed.info
        assert (typed.type_name, typed.n_bytes) == (expected.tensor_type.name, expected.n_bytes)
        assert (list(tensor.shape), tensor.start) == (expected.shape.tolist(), expected.data_offset)
    fields = {name for name in reader.fields if not name.startswith("GGUF.")}
    assert fields == set(header.entries)
    for key in fields:
        if header.value(key) is not None:
            assert header.value(key) == reader.get_field(key).contents()


def test_truncated_at_every_byte(parts, tmp_path):
    """No prefix is taken for the file, but for one that lacks nothing but padding at the end."""
    content = small(parts)
    path = tmp_path / "x.gguf"
    needed = len(content) - 28  # the last tensor has 4 bytes
    for n in range(len(content)):
        path.write_bytes(content[:n])
        if n == needed:
            assert find_types(read_header(path))[2].n_bytes == 4
        elif n < needed:
            with pytest.raises(SherryError) as caught:
                find_types(read_header(path))
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)


def test_any_field_may_lie(parts, tmp_path):
    """Every byte of a header replaced: a SherryError or a header, nothing else, and the tensors stay in the file."""
    content = small(parts)
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    data_start = read_header(path).data_start
    said = []
    for at in range(data_start):
        for other in (0, 1, 0x7F, 0xFF, content[at] ^ 0x80):
            path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
            try:
                header = read_header(path)
                types = find_types(header)
            except SherryError as error:
                said.append(str(error))
                continue
            assert all(header.data_start <= t.start <= t.stop <= len(content) for t in header.tensors)
            assert all(typed.n_bytes <= typed.info.span for typed in types)
    assert len(said) > data_start
    assert not any("\n" in line for line in said)


HUGE = (1 << 32, 1 << 60, (1 << 64) - 1)


def hostile(parts, case, n):
    one = [("a", (8,), 0, parts.f32(1, 8))]
    head = b"GGUF" + struct.pack("<I", 3)
    zero = struct.pack("<Q", 0)
    info = parts.info("a", (8,), 0, 0)
    return {
        "tensors": head + struct.pack("<QQ", n, 0) + info,
        "entries": head + struct.pack("<QQ", 0, n) + parts.entry("k", 4, 1),
        "key": head + zero + struct.pack("<QQ", 1, n) + b"abc" * 20,
        "string": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<IQ", 8, n)]),
        "array of numbers": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<IIQ", 9, 4, n)]),
        "array of strings": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<IIQ", 9, 8, n)]),
        "string in array": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<IIQQ", 9, 8, 1, n)]),
        "dimension": head + struct.pack("<QQ", 1, 0) + parts.info("a", (n, n), 0, 0) + bytes(64),
        "offset": head + struct.pack("<QQ", 2, 0) + info + parts.info("b", (8,), 0, n // 32 * 32) + bytes(99),
    }[case]


@pytest.mark.parametrize("n", HUGE)
@pytest.mark.parametrize(
    "case",
    ["tensors", "entries", "key", "string", "array of numbers", "array of strings", "string in array", "dimension",
     "offset"],
)  # fmt: skip
def test_huge_numbers(parts, tmp_path, case, n):
    path = tmp_path / "x.gguf"
    path.write_bytes(hostile(parts, case, n))
    with pytest.raises(SherryError):
        find_types(read_header(path))


REFUSED = {
    "": "is empty",
    "magic": "is no GGUF file: it begins with b'GGML'",
    "version 1": "is GGUF version 1; versions 2 and 3 can be read",
    "version 4": "is GGUF version 4",
    "big-endian": "is big-endian",
    "key twice": "has k twice",
    "name twice": "has two tensors named a",
    "5 dimensions": "a: has 5 dimensions",
    "value type": "k: has the unknown value type 13",
    "nested array": "k: is an array of value type 9",
    "alignment 24": "general.alignment is 24",
    "alignment 0": "general.alignment is 0",
    "alignment of u64": "general.alignment is 32, no uint32",
    "offsets swapped": "a is the first tensor, but has offset 32",
    "offset back": "c has offset 0, before that of b",
    "offset odd": "b has offset 33, no multiple of the alignment 32",
    "beyond the end": "b begins",
    "overlap": "a has 32 bytes, and needs 64 as F32; the next tensor begins too early",
    "too short": "a has 32 bytes, and needs 64 as F32; is it truncated",
    "newer format": "sherry.format_version is 3, this sherry-gguf reads versions up to 2",
    "odd format": "sherry.format_version is no uint32",
    "control characters": r"\\x1b\[31m\\na: has 7 dimensions",
}


def refused(parts, case):
    one = [("a", (8,), 0, parts.f32(1, 8))]
    plain = parts.gguf_bytes(one)
    number = parts.entry("k", 4, 1)

    def of(*infos, data=b"\0" * 96):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), 0) + b"".join(infos)
        return parts.pad(head, 32) + data

    def a(offset, shape=(8,)):
        return parts.info("a", shape, 0, offset)

    def b(offset):
        return parts.info("b", (8,), 0, offset)

    return {
        "": b"",
        "magic": b"GGML" + plain[4:],
        "version 1": parts.gguf_bytes(one, version=1),
        "version 4": parts.gguf_bytes(one, version=4),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "key twice": parts.gguf_bytes(one, [number, number]),
        "name twice": of(a(0), a(32)),
        "5 dimensions": of(a(0, (8, 1, 1, 1, 1))),
        "value type": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<II", 13, 0)]),
        "nested array": parts.gguf_bytes(one, [parts.string("k") + struct.pack("<IIQ", 9, 9, 0)]),
        "alignment 24": parts.gguf_bytes(one, [parts.entry("general.alignment", 4, 24)]),
        "alignment 0": parts.gguf_bytes(one, [parts.entry("general.alignment", 4, 0)]),
        "alignment of u64": parts.gguf_bytes(one, [parts.entry("general.alignment", 10, 32)]),
        "offsets swapped": of(a(32), b(0)),
        "offset back": of(a(0), b(32), parts.info("c", (8,), 0, 0)),
        "offset odd": of(a(0), b(33)),
        "beyond the end": of(a(0), b(320)),
        "overlap": of(a(0, (16,)), b(32)),
        "too short": of(a(0, (16,)), data=b"\0" * 32),
        "newer format": parts.gguf_bytes(one, [parts.entry("sherry.format_version", 4, 3)]),
        "odd format": parts.gguf_bytes(one, [parts.entry("sherry.format_version", 8, "1")]),
        "control characters": of(parts.info("\x1b[31m\na", (1,) * 7, 0, 0)),
    }[case]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(parts, tmp_path, case):
    path = tmp_path / "x.gguf"
    path.write_bytes(refused(parts, case))
    with pytest.raises(SherryError, match=REFUSED[case].replace(".", r"\.")) as caught:
        find_types(read_header(path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("command", [["inspect"], ["retag", "--to", "43"], ["requantize", "--outtype", "q2_0"]])
@pytest.mark.parametrize("content", [b"", b"GGUF\1\0\0\0", b"GGUF\3\0\0\0" + b"\xff" * 16, None])
def test_commands_say_one_line(tmp_path, command, content):
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    run = [sys.executable, "-m", "sherry_gguf", command[0], path, *command[1:]]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.startswith(f"sherry-gguf {command[0]}: error: {path}: ")
    assert done.stderr.count("\n") == 1


def test_empty_tensors_and_no_tensors(build, parts):
    header = read_header(build([("none", (0, 4), 0, b""), ("some", (1,), 0, b"1234")]))
    assert [(t.weights, t.span) for t in header.tensors] == [(0, 0), (1, 32)]
    assert [typed.problem for typed in find_types(header)] == [None, None]
    assert find_types(read_header(build([]))) == []


def test_a_million_entries_cost_what_they_are(parts, tmp_path):
    """Long lists are read, in memory near the file's size: nothing is allocated by what a number says."""
    path = tmp_path / "x.gguf"
    words = [f"word {i}" for i in range(200_000)]
    path.write_bytes(parts.gguf_bytes([], [parts.array("tokenizer.ggml.tokens", 8, words)]))
    assert np.array_equal(read_header(path).data, np.fromfile(path, dtype=np.uint8))
