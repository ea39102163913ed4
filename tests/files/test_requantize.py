"""The same weights in another type, or a refusal; nothing else in the file changes."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from packing import FILE_TYPES, IDS, of_codes, pack
from refusals import refused

from sherry_gguf.cli import main
from sherry_gguf.commands.requantize import WAYS
from sherry_gguf.errors import SherryError
from sherry_gguf.files import tensor
from sherry_gguf.files.header import read_header
from sherry_gguf.files.identify import find_types
from sherry_gguf.files.requantize import requantize
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import to_fours
from sherry_gguf.formats.table import named, tensor_types
from sherry_gguf.formats.tensor_type import TensorType

ROWS, K = 12, 1024


def on_grid(groups, span, seed=0, rows=ROWS):
    """float32[rows, K] on a grid, a scale for every ``span``, some of them 0."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 32, (rows, K // 4), dtype=np.uint8)
    scales = generator.lognormal(-3, 1, (rows, K // span)).astype(np.float16).astype(np.float32)
    scales[1, 2] = 0
    return of_codes(codes, groups) * np.repeat(scales, span, axis=1)


def content_of(parts, name, weights, file_type=None, type_id=None, alignment=32):
    """A model of three matrices in a type, one of experts, between other tensors."""
    file_type = FILE_TYPES[name] if file_type is None else file_type
    version = {"SHERRY": 1, "SHERRY_G32": 2, "SHERRY_2P": 2}.get(name)
    entries = [
        parts.entry("general.architecture", 8, "llama"),
        parts.entry("general.file_type", 4, file_type),
        parts.array("tokenizer.ggml.tokens", 8, ["", "ü", "\n"]),
        *([] if version is None else [parts.entry("sherry.format_version", 4, version)]),
    ]
    type_id = IDS[name] if type_id is None else type_id
    q4_0 = np.random.default_rng(9).integers(0, 256, 4 * 18 * 2, dtype=np.uint8)  # of the embedding: not ternary
    q4_0.reshape(-1, 18)[:, :2] = np.frombuffer(np.float16(0.5).tobytes(), dtype=np.uint8)
    tensors = [
        ("token_embd.weight", (64, 4), 2, q4_0.tobytes()),
        ("blk.0.attn_q.weight", (K, ROWS), type_id, pack(name, weights)),
        ("blk.0.attn_norm.weight", (7,), 0, parts.f32(1, 7)),
        ("blk.0.ffn_up_exps.weight", (K, 4, 3), type_id, pack(name, weights[::-1].copy())),
        ("blk.0.ffn_down.weight", (K,), type_id, pack(name, weights[:1])),
        ("odd", (5,), 97, b"whatever these are, they stay as"),
    ]
    return parts.gguf_bytes(tensors, entries, alignment=alignment)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "x.gguf"


# The types that hold a matrix of this grid and span.
HOLD = {
    ("consecutive", 256): ("SHERRY", "SHERRY_G32", "SHERRY_2P", "TQ1_0", "TQ2_0", "Q2_0", "Q4_0"),
    ("consecutive", 128): ("SHERRY", "SHERRY_G32", "SHERRY_2P", "Q2_0", "Q4_0"),
    ("consecutive", 32): ("SHERRY_G32", "Q4_0"),
    ("stride16", 256): ("STQ1_0", "TQ1_0", "TQ2_0", "Q2_0", "Q4_0"),
}


@pytest.mark.parametrize("chunk", [1 << 22, 5 * K])
@pytest.mark.parametrize(
    ("grid", "old", "new"), [(g, old, new) for g, types in HOLD.items() for old in types for new in types if old != new]
)
def test_every_exact_pair(file, parts, monkeypatch, grid, old, new, chunk):
    """The result is byte for byte the file that would have been built in the new type."""
    monkeypatch.setattr(tensor, "_CHUNK", chunk)
    weights = on_grid(*grid)
    file.write_bytes(content_of(parts, old, weights))
    done = requantize(file, named(new.lower()))
    assert done.outfile == file.with_name(f"x-{new}.gguf")
    assert (done.tensors, done.was) == (3, (old,))
    assert file.read_bytes() == content_of(parts, old, weights)
    assert done.outfile.read_bytes() == content_of(parts, new, weights)
    assert len(list(file.parent.iterdir())) == 2


def test_around_and_back(file, parts, tmp_path):
    """Through all types that hold it, and to the bytes it began with."""
    content = content_of(parts, "SHERRY", on_grid("consecutive", 256))
    file.write_bytes(content)
    steps = ["sherry", "q4_0", "tq1_0", "sherry_g32", "q2_0", "sherry_g32", "tq2_0", "sherry_2p", "sherry"]
    for i, (_, outtype) in enumerate(pairwise(steps)):
        new = tmp_path / f"{i}.gguf"
        requantize(file, named(outtype), new)
        file = new
    assert file.read_bytes() == content


@pytest.mark.parametrize("alignment", [32, 64, 128])
@pytest.mark.parametrize(("type_id", "file_type"), [(42, 41), (43, 42), (43, 513), (253, 513)])
def test_published_files(file, parts, type_id, file_type, alignment):
    """STQ1_0 under all its ids, and the numbers that its revisions gave to the file."""
    weights = on_grid("stride16", 256)
    file.write_bytes(content_of(parts, "STQ1_0", weights, file_type, type_id, alignment))
    done = requantize(file, named("tq2_0"))
    assert done.outfile.read_bytes() == content_of(parts, "TQ2_0", weights, alignment=alignment)


def test_a_file_type_of_another_type_stays(file, parts):
    weights = on_grid("consecutive", 128)
    file.write_bytes(content_of(parts, "SHERRY", weights, file_type=7))
    assert requantize(file, named("q2_0")).outfile.read_bytes() == content_of(parts, "Q2_0", weights, file_type=7)


def test_upstreams_own_q4_0(file, parts):
    """gguf-py's d is negative where the largest weight is positive: with weights of one sign it is ternary as well."""
    import gguf

    weights = np.abs(on_grid("consecutive", 128))
    traits = gguf.quants._type_traits[gguf.GGMLQuantizationType.Q4_0]
    data = np.concatenate([traits.quantize_blocks(row.reshape(-1, 32)).reshape(-1) for row in weights])
    assert (data.reshape(-1, 18)[:, 1] & 0x80).any()
    assert np.array_equal(gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q4_0).reshape(weights.shape), weights)
    file.write_bytes(parts.gguf_bytes([("a", (K, ROWS), 2, data.tobytes())]))
    new = read_header(requantize(file, named("sherry")).outfile)
    assert np.array_equal(sherry.SHERRY.dequantize(find_types(new)[0].rows), weights)


def changed_weights(kind):
    return {
        "scales": ("consecutive", 128, "SHERRY", "tq2_0"),
        "finer scales": ("consecutive", 32, "Q4_0", "sherry"),
        "grid": ("stride16", 256, "TQ2_0", "sherry"),
        "other grid": ("consecutive", 256, "TQ2_0", "stq1_0"),
    }[kind]


@pytest.mark.parametrize("kind", ["scales", "finer scales", "grid", "other grid"])
def test_refused(file, parts, kind):
    """With the tensor, how many weights, and the types that hold it."""
    groups, span, old, new = changed_weights(kind)
    weights = on_grid(groups, span)
    content = content_of(parts, old, weights)
    file.write_bytes(content)
    held = " or ".join(name.lower() for name in (t.name for t in tensor_types()) if name in HOLD[groups, span])
    with pytest.raises(SherryError) as caught:
        requantize(file, named(new))
    said = caught.value.worded(WAYS)
    kind = named(new)
    n, in_one_row = count_by_hand(weights, kind), count_by_hand(weights[:1], kind)
    assert said.startswith(f"{file}: blk.0.attn_q.weight: at least {n:,} of {weights.size:,} weights do not fit")
    assert f"; 3 of 3 tensors do not fit, with {2 * n + in_one_row:,} of {25 * K:,} weights; " in said
    assert said.endswith(f"; all fit --outtype {held}")
    assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]


def count_by_hand(weights, kind):
    """The weights that the best bytes of a type cannot give back, block by block in plain loops."""
    fours = to_fours(weights, kind.grid or "consecutive").reshape(-1, kind.block)
    changed = 0
    for block in fours:
        best = np.count_nonzero(block == 0)
        for scale in np.unique(np.abs(block[block != 0])):
            same, zero = np.abs(block) == scale, block == 0
            if kind.grid is None:
                kept = np.count_nonzero(same | zero)
            else:
                groups = zip(same.reshape(-1, 4).sum(axis=1), zero.reshape(-1, 4).sum(axis=1), strict=True)
                kept = sum(min(others, 3) + min(zeros, 1) for others, zeros in groups)
            best = max(best, kept)
        changed += block.size - best
    return changed


def test_rows_that_do_not_fit(file, parts):
    file.write_bytes(parts.gguf_bytes([("a", (384, 8), 512, parts.sherry_blocks(8, 384))]))
    said = r"a: rows of 384 .* do not fit TQ1_0.*; all fit --outtype sherry or sherry_g32 or q2_0 or sherry_2p or q4_0"
    with refused(said, WAYS):
        requantize(file, named("tq1_0"))


@pytest.mark.parametrize("k", [32, 96, 160, 576])
def test_rows_of_32s(file, parts, k):
    data = parts.sherry_g32_blocks(8, k)
    entries = [parts.entry("general.file_type", 4, 520), parts.entry("sherry.format_version", 4, 2)]
    file.write_bytes(parts.gguf_bytes([("a", (k, 8), 520, data)], entries))
    there = requantize(file, named("q4_0")).outfile
    header = read_header(there)
    assert (header.value("general.file_type"), header.value("sherry.format_version")) == (2, None)
    back = requantize(there, named("sherry_g32"), file.with_name("back.gguf")).outfile
    assert back.read_bytes() == file.read_bytes()
    assert requantize(file, named("sherry_g32")).outfile is None


def test_sherrys_two_types_in_one_file(file, parts):
    """The version is that of the types that are left, and the number of the file that of the new type."""
    weights = on_grid("consecutive", 128)
    tensors = [(name, (K, ROWS), IDS[name], pack(name, weights)) for name in ("SHERRY", "SHERRY_G32")]
    entries = [parts.entry("sherry.format_version", 4, 2), parts.entry("general.file_type", 4, 520)]
    file.write_bytes(parts.gguf_bytes(tensors, entries))
    for name, version, file_type in (("SHERRY", 1, 512), ("SHERRY_G32", 2, 520), ("Q4_0", None, 2)):
        header = read_header(requantize(file, named(name)).outfile)
        assert {tensor.type_id for tensor in header.tensors} == {IDS[name]}
        assert (header.value("sherry.format_version"), header.value("general.file_type")) == (version, file_type)


def test_two_planes(file, parts):
    """A matrix that needs both is left alone beside one that does not; where there are no others it is said why."""
    entries = [parts.entry("sherry.format_version", 4, 2), parts.entry("general.file_type", 4, 521)]
    one = ("one", (K, ROWS), 521, pack("SHERRY_2P", on_grid("consecutive", 128)))
    two = ("two", (K, ROWS), 521, parts.sherry_2p_blocks(ROWS, K))
    file.write_bytes(parts.gguf_bytes([one, two], entries))
    header = read_header(requantize(file, named("sherry")).outfile)
    assert [tensor.type_id for tensor in header.tensors] == [512, 521]
    assert header.value("sherry.format_version") == 2
    assert np.array_equal(find_types(header)[1].stored.tobytes(), two[3])
    file.write_bytes(parts.gguf_bytes([two], entries))
    with refused(r"has no ternary tensors; [\d,]+ of 12,288 weights of two, which is SHERRY_2P, are neither 0 ", WAYS):
        requantize(file, named("sherry"))


def test_no_type_holds_all(file, parts):
    """Q4_0 has magnitudes that are 8 times the largest scale."""
    block = b"\xff\x7b" + b"\x80" * 16  # 65504 * 0 and 65504 * -8
    file.write_bytes(parts.gguf_bytes([("a", (64,), 2, block * 2)]))
    with pytest.raises(SherryError, match=r"a: at least 32 of 64 weights do not fit Q2_0 .*; no one type holds all of"):
        requantize(file, named("q2_0"))


def test_a_ternary_type_with_other_weights(file, parts):
    """Q2_0 has a code for 2 * d; in TQ2_0 it is a byte's 3."""
    for name, data in (("Q2_0", b"\x00\x3c" + b"\xb4" * 16), ("TQ2_0", b"\xb4" * 64 + b"\x00\x3c")):
        n = 64 if name == "Q2_0" else 256
        file.write_bytes(parts.gguf_bytes([("a", (n,), IDS[name], data)]))
        with pytest.raises(SherryError, match=rf"a: {n // 2} of {n} weights are neither 0 nor of their block's"):
            requantize(file, named("q4_0"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_damaged_scales(file, parts, value):
    data = bytearray(parts.sherry_blocks(8, 256))
    data[20:22] = np.float16(value).tobytes()
    file.write_bytes(parts.gguf_bytes([("a", (256, 8), 512, bytes(data))]))
    with pytest.raises(SherryError, match="a has scales that no weights have; it is damaged"):
        requantize(file, named("q2_0"))


def test_nothing_ternary_and_nothing_to_do(file, parts):
    file.write_bytes(parts.gguf_bytes([("a", (64, 8), 0, parts.f32(8, 64))]))
    with pytest.raises(SherryError, match="has no ternary tensors"):
        requantize(file, named("q2_0"))
    file.write_bytes(content_of(parts, "SHERRY", on_grid("consecutive", 128)))
    assert str(requantize(file, named("sherry"))) == "nothing to do: all 3 ternary tensors are SHERRY"
    assert list(file.parent.iterdir()) == [file]


def test_a_result_that_nothing_could_read(file, parts):
    """Alone at alignment 128, a block of 256 weights is STQ1_0 or Q2_0 by its size: it is not written."""
    weights = on_grid("stride16", 256)[:1, :256].copy()
    file.write_bytes(parts.gguf_bytes([("a", (256,), 35, pack("TQ2_0", weights))], alignment=128))
    with pytest.raises(SherryError, match="a cannot be written so: nothing tells Q2_0 from STQ1_0"):
        requantize(file, named("q2_0"))
    assert list(file.parent.iterdir()) == [file]


def test_an_existing_outfile(file, parts, tmp_path):
    file.write_bytes(content_of(parts, "SHERRY", on_grid("consecutive", 128)))
    other = tmp_path / "other.gguf"
    other.write_text("mine")
    with refused(r"other\.gguf exists; .*--force"):
        requantize(file, named("q2_0"), other)
    with pytest.raises(SherryError, match="do not fit TQ2_0"):
        requantize(file, named("tq2_0"), other, force=True)
    assert other.read_text() == "mine"
    requantize(file, named("q2_0"), other, force=True)
    assert other.read_bytes() == content_of(parts, "Q2_0", on_grid("consecutive", 128))


def test_a_write_that_goes_wrong_is_found(file, parts, monkeypatch):
    """Bytes that were not those of the weights never become the outfile."""
    file.write_bytes(content_of(parts, "SHERRY", on_grid("consecutive", 128)))

    def damaged(self, weights):
        data = pack_of(self, weights)
        data[-1, -1] ^= 1
        return data

    pack_of = TensorType.pack
    monkeypatch.setattr(TensorType, "pack", damaged)
    with pytest.raises(SherryError, match=r"attn_q\.weight cannot be written so: it reads back as something else"):
        requantize(file, named("q2_0"))
    assert list(file.parent.iterdir()) == [file]


def test_command(file, parts, capsys):
    file.write_bytes(content_of(parts, "SHERRY", on_grid("consecutive", 128)))
    assert main(["requantize", str(file), "--outtype", "Q2_0"]) == 0
    new = file.with_name("x-Q2_0.gguf")
    assert capsys.readouterr().out == (
        f"wrote {new}: 3 tensors, SHERRY before, are Q2_0 now; "
        f"verified: every weight is as it was, and so are all other tensors and metadata\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sherry_gguf", "requantize", file, "--outtype", "tq2_0"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"sherry-gguf requantize: error: {file}: blk.0.attn_q.weight: ")


def test_a_converted_model(sherry_gguf_file, tmp_path):
    """What the converter wrote, through Q2_0 and back, is the file it was."""
    requantize(sherry_gguf_file, named("q2_0"), tmp_path / "q2_0.gguf")
    requantize(tmp_path / "q2_0.gguf", named("sherry"), tmp_path / "back.gguf")
    old, new = read_header(sherry_gguf_file), read_header(tmp_path / "back.gguf")
    assert {e.key: old.data[e.start : e.stop].tobytes() for e in old.entries.values()} == {
        e.key: new.data[e.start : e.stop].tobytes() for e in new.entries.values()
    }
    assert np.array_equal(old.data[old.data_start :], new.data[new.data_start :])
