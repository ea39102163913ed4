"""Files of type 42: STQ1_0 or Q2_0, told by their bytes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.runtime

F32, Q2_0, STQ1_0, SHERRY, SHERRY_G32, SHERRY_2P = 0, 42, 43, 512, 520, 521
BYTES = {
    F32: (1, 4),
    Q2_0: (64, 18),
    STQ1_0: (256, 42),
    SHERRY: (128, 22),
    SHERRY_G32: (32, 7),
    SHERRY_2P: (128, 44),
}

Tensor = tuple[Sequence[int], int, int]  # dimensions, the id in the file, the bytes: those of which type


def size_of(dimensions: Sequence[int], kind: int) -> int:
    n, (weights, size) = 1, BYTES[kind]
    for dimension in dimensions:
        n *= dimension
    return n // weights * size


def make(tensors: Sequence[Tensor], alignment: int = 32, pad_end: bool = True, offsets: Sequence[int] = ()) -> bytes:
    """A GGUF file; with ``offsets``, in place of the true ones."""
    key = b"general.alignment"
    head = b"GGUF" + struct.pack("<IqqQ", 3, len(tensors), 1, len(key)) + key + struct.pack("<II", 4, alignment)
    data = b""
    for i, (dimensions, type_id, kind) in enumerate(tensors):
        data += b"\0" * (-len(data) % alignment)
        name = f"tensor{i}".encode()
        offset = offsets[i] if offsets else len(data)
        shape = struct.pack(f"<I{len(dimensions)}q", len(dimensions), *dimensions)
        head += struct.pack("<Q", len(name)) + name + shape + struct.pack("<iQ", type_id, offset)
        data += b"\x11" * size_of(dimensions, kind)
    head += b"\0" * (-len(head) % alignment)
    return head + data + (b"\0" * (-len(data) % alignment) if pad_end else b"")


class _Parameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_Callback = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t)


class Reader:
    """gguf.cpp on files, in each of the ways it reads them."""

    def __init__(self, ggml: Any, way: str, folder: Path) -> None:
        self.base, self.way, self.folder = ggml.base, way, folder
        for name in ("gguf_init_from_file", "gguf_init_from_buffer", "gguf_init_from_callback"):
            getattr(self.base, name).restype = ctypes.c_void_p
        self.base.gguf_get_tensor_size.restype = ctypes.c_size_t
        self.base.gguf_get_n_tensors.restype = ctypes.c_int64

    def types(self, data: bytes) -> list[int] | None:
        """Of all tensors, None for a file that is refused."""
        parameters = _Parameters(True, None)
        if self.way == "file":
            path = self.folder / "file.gguf"
            path.write_bytes(data)
            context = self.base.gguf_init_from_file(str(path).encode(), parameters)
        elif self.way == "buffer":
            context = self.base.gguf_init_from_buffer(data, ctypes.c_size_t(len(data)), parameters)
        else:  # its size is not known, but for a bound

            @_Callback
            def read(_: Any, out: int, offset: int, size: int) -> int:
                piece = data[offset : offset + size]
                ctypes.memmove(out, piece, len(piece))
                return len(piece)

            bound = ctypes.c_uint64(4 << 30)
            context = self.base.gguf_init_from_callback(read, None, ctypes.c_size_t(4096), bound, parameters)
        if not context:
            return None
        handle = ctypes.c_void_p(context)
        indices = [ctypes.c_int64(i) for i in range(self.base.gguf_get_n_tensors(handle))]
        types = [self.base.gguf_get_tensor_type(handle, i) for i in indices]
        self.sizes = [self.base.gguf_get_tensor_size(handle, i) for i in indices]
        self.base.gguf_free(handle)
        return types


@pytest.fixture(params=["file", "buffer", "callback"])
def reader(request: pytest.FixtureRequest, ggml: Any, tmp_path: Path) -> Reader:
    return Reader(ggml, request.param, tmp_path)


OLD = [((256, 3), Q2_0, STQ1_0), ((16,), F32, F32), ((512, 2, 2), Q2_0, STQ1_0)]
TRUE = [((256, 3), Q2_0, Q2_0), ((16,), F32, F32), ((512, 2, 2), Q2_0, Q2_0)]


@pytest.mark.parametrize("pad_end", [False, True])
@pytest.mark.parametrize("alignment", [1, 32, 64, 256])
@pytest.mark.parametrize("last", [0, 1, 2, 3])  # how many tensors there are; 0: all, and one of floats
def test_old_files_are_stq1_0(reader: Reader, capfd: Any, alignment: int, pad_end: bool, last: int) -> None:
    tensors = OLD[:last] or [*OLD, ((5,), F32, F32)]
    if alignment == 256 and last in (1, 2):
        tensors = [((256, 30), *tensors[0][1:]), *tensors[1:]]  # large enough to tell
    types = reader.types(make(tensors, alignment, pad_end))
    assert types == [STQ1_0 if kind == STQ1_0 else F32 for _, _, kind in tensors]
    assert reader.sizes == [size_of(shape, kind) for shape, _, kind in tensors]
    log = capfd.readouterr().err
    assert log.count("tensors of type 42 have the size of STQ1_0") == 1
    assert len(log.splitlines()) == 1


@pytest.mark.parametrize("pad_end", [False, True])
@pytest.mark.parametrize("alignment", [1, 32, 64, 256])
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_true_q2_0_stays(reader: Reader, capfd: Any, alignment: int, pad_end: bool, last: int) -> None:
    tensors = TRUE[:last] or [*TRUE, ((5,), F32, F32)]
    if alignment == 256 and last in (1, 2):
        tensors = [((256, 30), *tensors[0][1:]), *tensors[1:]]
    data = make(tensors, alignment, pad_end)
    for file in (data, data + b"\0" * 4096):  # bytes after the end are nobody's business
        assert reader.types(file) == [type_id for _, type_id, _ in tensors]
    assert capfd.readouterr().err == ""


def test_rows_of_64_are_q2_0(reader: Reader) -> None:
    """At an alignment that leaves no other way to tell."""
    for tensors in ([((64,), Q2_0, Q2_0)], [((64,), Q2_0, Q2_0), ((256,), Q2_0, Q2_0), ((192,), Q2_0, Q2_0)]):
        assert reader.types(make(tensors, 256)) == [Q2_0] * len(tensors)


def test_tensors_that_could_be_either_follow_those_that_could_not(reader: Reader) -> None:
    for kind in (Q2_0, STQ1_0):
        small, large = ((256,), Q2_0, kind), ((4096, 4), Q2_0, kind)
        assert reader.types(make([small, large, small], 256)) == [kind] * 3
        assert reader.types(make([small, small, large], 256)) == [kind] * 3


def test_where_none_can_tell_the_file_is_refused(reader: Reader, capfd: Any) -> None:
    for kind in (Q2_0, STQ1_0):
        assert reader.types(make([((256,), Q2_0, kind), ((16,), F32, F32), ((256,), Q2_0, kind)], 256)) is None
        assert "type 42 is Q2_0 or STQ1_0, and all tensors that have it are too small to tell" in capfd.readouterr().err


def test_no_weights_need_no_decision(reader: Reader) -> None:
    assert reader.types(make([((256, 0), Q2_0, Q2_0), ((16,), F32, F32)])) == [Q2_0, F32]


def test_an_empty_tensor_follows_the_others_where_it_can(reader: Reader) -> None:
    """Rows of 64 are no blocks of STQ1_0, and ggml makes no tensor of them, not even an empty one."""
    empty, narrow = ((256, 0), Q2_0, Q2_0), ((64, 0), Q2_0, Q2_0)
    for i in range(3):
        old = [*OLD[:i], empty, narrow, *OLD[i:]]
        types = [STQ1_0 if tensor[2] == STQ1_0 or tensor is empty else tensor[1] for tensor in old]
        assert reader.types(make(old)) == types
        assert reader.types(make([*TRUE[:i], empty, narrow, *TRUE[i:]])) == [
            F32 if tensor[1] == F32 else Q2_0 for tensor in old
        ]
    assert reader.types(make([narrow, ((0,), Q2_0, Q2_0), ((16,), F32, F32)])) == [Q2_0, Q2_0, F32]


def test_contradictions_are_refused(reader: Reader, capfd: Any) -> None:
    old, true, floats = ((256, 3), Q2_0, STQ1_0), ((256, 3), Q2_0, Q2_0), ((16,), F32, F32)
    for tensors in ([old, true, floats], [true, old, floats], [old, floats, true], [old, old, true]):
        assert reader.types(make(tensors)) is None
        assert "some have the size of Q2_0, some of STQ1_0: damaged file" in capfd.readouterr().err
    # a whole number of blocks of Q2_0 only
    assert reader.types(make([((64, 3), Q2_0, Q2_0), old, floats])) is None
    # upstream reads it: to it the file is cut short
    assert reader.types(make([true, old])) == [Q2_0, Q2_0]


def test_what_has_neither_size_is_refused(reader: Reader, capfd: Any) -> None:
    data = make([((256, 3), Q2_0, F32), ((16,), F32, F32)])
    assert reader.types(data) is None
    assert (
        "tensor 'tensor0' of type 42 takes 3072 bytes of the file: neither the 224 of Q2_0 nor the 128 of STQ1_0"
        in (capfd.readouterr().err)
    )
    assert reader.types(make([*OLD, ((5,), F32, F32)])) is not None
    assert reader.types(make([*OLD, ((5,), F32, F32)], offsets=[0, 128, 192, 0])) is None
    for offsets in ([0, 2**64 - 32], [2**64 - 32, 0], [2**63, 0], [0, 0], [32, 160]):
        assert reader.types(make([OLD[0], OLD[2]], offsets=offsets)) is None
    # after the last tensor comes what is not its own
    assert reader.types(make(OLD) + b"\0" * 32) is None


@pytest.mark.parametrize("pad_end", [False, True])
@pytest.mark.parametrize("kind", [STQ1_0, SHERRY, SHERRY_G32, SHERRY_2P])
def test_the_last_tensor_of_our_types_ends_the_file(reader: Reader, capfd: Any, kind: int, pad_end: bool) -> None:
    """Found by fuzzing: blocks of SHERRY_G32 under the id of STQ1_0 were read as other weights."""
    for shape in ((512,), (512, 2, 2)):
        assert reader.types(make([((16,), F32, F32), (shape, kind, kind)], 32, pad_end)) == [F32, kind]
        assert reader.types(make([((16,), F32, F32), (shape, kind, kind)]) + b"\0") is None
        assert "more bytes follow the last tensor, 'tensor1', than the " in capfd.readouterr().err
    assert reader.types(make([((512,), kind, kind), ((16,), F32, F32)]) + b"\0") == [kind, F32]  # upstream's business
    for larger in (SHERRY_G32, SHERRY_2P):
        if BYTES[kind][1] / BYTES[kind][0] < BYTES[larger][1] / BYTES[larger][0]:
            assert reader.types(make([((512,), kind, larger)])) is None


@pytest.mark.parametrize("kind", [Q2_0, STQ1_0])
def test_a_file_that_is_cut_never_crashes(reader: Reader, kind: int) -> None:
    """It is refused, or read as upstream reads it: what is missing is the loader's business."""
    tensors = TRUE if kind == Q2_0 else OLD
    data = make(tensors)
    whole = reader.types(data)
    for end in range(len(data)):
        types = reader.types(data[:end])
        assert types == whole if types is not None else end < data.index(b"\x11" * 16)  # the data


def test_one_tensor_that_is_cut(reader: Reader) -> None:
    """Nothing but the end of the file tells what it is."""
    data = make(OLD[:1], pad_end=False)
    header = len(data) - size_of(*OLD[0][::2])
    for size in range(0, 218, 7):
        exact = 126 <= size <= 128  # 126 bytes, without padding or with it
        assert reader.types(data[:header] + b"\x11" * size) == [STQ1_0 if exact else Q2_0]


def test_id_43_is_stq1_0(reader: Reader) -> None:
    assert reader.types(make([((256, 3), STQ1_0, STQ1_0), ((512,), STQ1_0, STQ1_0)])) == [STQ1_0, STQ1_0]
    assert reader.types(make([((256, 3), STQ1_0, Q2_0), ((512,), STQ1_0, Q2_0)])) is None  # by upstream's own check
    assert reader.types(make([((192, 4), STQ1_0, STQ1_0)])) is None
