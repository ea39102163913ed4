"""What inspect says is what the weights are."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from packing import IDS, of_codes, pack

from sherry_gguf.cli import main
from sherry_gguf.files import tensor
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.inspect import as_json, inspect
from sherry_gguf.files.statistics import statistics_of

BLOCK = {
    "SHERRY": 128, "SHERRY_G32": 32, "SHERRY_2P": 128,
    "STQ1_0": 256, "TQ1_0": 256, "TQ2_0": 256, "Q2_0": 64, "Q4_0": 32,
}  # fmt: skip
OWN = {"SHERRY": "consecutive", "SHERRY_G32": "consecutive", "SHERRY_2P": "consecutive", "STQ1_0": "stride16"}
ROWS, K = 8, 1024
SPANS = ("tensor", "row", "512", "256", "128", "64", "32")
CASES = [
    (name, groups, span)
    for name, block in BLOCK.items()
    for groups in ("consecutive", "stride16", None)
    for span in SPANS
    if OWN.get(name, groups) == groups and not (span.isdigit() and int(span) < block)
]


def codes_of(seed=0):
    """Uneven, so that a histogram tells one code from another."""
    weights = np.arange(1, 33) / np.arange(1, 33).sum()
    return np.random.default_rng(seed).choice(32, (ROWS, K // 4), p=weights).astype(np.uint8)


def scales_of(span):
    """float32[ROWS, K]: fp16 numbers that are shared by a tensor, a row, or so many weights, and by no more."""
    n = {"tensor": 1, "row": ROWS}.get(span) or ROWS * K // int(span)
    scales = (1 + np.arange(n) / 1024).astype(np.float32)
    return np.repeat(scales, ROWS * K // n).reshape(ROWS, K)


def found_in(build, name, data):
    (tensor,) = open_gguf(build([("a", (K, ROWS), IDS[name], data)])).tensors
    return statistics_of(tensor)


def on_grid(grid, codes=None):
    return of_codes(codes_of() if codes is None else codes, grid)


@pytest.mark.parametrize("chunk", [1 << 22, K, 3 * K])
@pytest.mark.parametrize(("name", "groups", "span"), CASES)
def test_grid_and_sharing(build, monkeypatch, name, groups, span, chunk):
    monkeypatch.setattr(tensor, "_CHUNK", chunk)
    t = np.random.default_rng(0).integers(-1, 2, (ROWS, K)) if groups is None else on_grid(groups)
    found = found_in(build, name, pack(name, t.astype(np.float32) * scales_of(span)))
    expected = {"consecutive": "consecutive fours", "stride16": "stride 16", None: "dense ternary"}
    assert (found.grid, found.shared) == (expected[groups], span)
    if groups is not None:
        assert found.one_zero[groups] == found.groups[groups] == ROWS * K // 4
    if name in OWN and name != "SHERRY_2P":  # which has two codes for a group
        assert np.array_equal(found.codes, np.bincount(codes_of().reshape(-1), minlength=32))
    else:
        assert found.codes is None


@pytest.mark.parametrize(("row", "size"), [(96, 32), (192, 96), (320, 160), (1152, 576)])
def test_sharing_of_sizes_that_are_no_powers_of_two(build, row, size):
    scales = np.arange(1, 4 * row // size + 1, dtype=np.float32).repeat(size).reshape(4, row)
    weights = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (4, row // 4)) * scales
    (tensor,) = open_gguf(build([("a", (row, 4), IDS["SHERRY_G32"], pack("SHERRY_G32", weights))])).tensors
    assert statistics_of(tensor).shared == str(size)


@pytest.mark.parametrize("name", IDS)
def test_scales(build, name):
    """Against NumPy, block by block; the median of an even number is the lower one."""
    groups = OWN.get(name, "consecutive")
    scales = np.random.default_rng(1).lognormal(-3, 1, (ROWS, K // 256)).astype(np.float16).astype(np.float32)
    scales[2, 1] = 0
    found = found_in(build, name, pack(name, on_grid(groups) * np.repeat(scales, 256, axis=1)))
    used, of_256 = np.sort(scales[scales != 0]), 256 // BLOCK[name]
    of_planes = scales.size * of_256 if name == "SHERRY_2P" else 0  # the second plane's
    assert found.scales.summary() == {
        "min": used[0], "median": used[(used.size - 1) // 2], "max": used[-1],
        "negative": 0, "zero": of_256 + of_planes, "not_finite": 0,
    }  # fmt: skip
    assert found.empty_blocks == of_256
    assert found.shared == "256"
    assert found.groups[groups] == ROWS * K // 4 - 64


@pytest.mark.parametrize("name", IDS)
def test_damaged_scales(build, name):
    """Are counted, and do not stop the rest from being read."""
    groups = OWN.get(name, "consecutive")
    data = np.frombuffer(pack(name, on_grid(groups)), dtype=np.uint8).copy()
    size = {"SHERRY": 22, "SHERRY_G32": 7, "SHERRY_2P": 44, "STQ1_0": 42, "TQ1_0": 54, "TQ2_0": 66}.get(name, 18)
    at = {"Q2_0": 0, "Q4_0": 0, "SHERRY_2P": 20}.get(name, size - 2)  # of two planes the first
    for block, value in ((0, np.nan), (3, np.inf), (5, -np.inf), (7, -1.0)):
        data.reshape(-1, size)[block, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    found = found_in(build, name, data.tobytes())
    summary = found.scales.summary()
    assert (summary["not_finite"], summary["negative"], summary["min"], summary["max"]) == (3, 1, -1, 1)
    assert found.empty_blocks == 3
    assert found.grid == {"stride16": "stride 16"}.get(groups, "consecutive fours")


def test_an_empty_matrix(build):
    found = found_in(build, "SHERRY", bytes(ROWS * K // 128 * 22))
    assert (found.grid, found.shared, found.codes.sum()) == ("all zero", "tensor", 0)
    assert found.scales.summary()["median"] is None


def test_a_dense_q4_0_is_no_ternary_type(build):
    import gguf

    weights = np.random.default_rng(0).standard_normal((ROWS, K)).astype(np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_0).tobytes()
    assert found_in(build, "Q4_0", data) is None
    (inspected,) = inspect(build([("a", (K, ROWS), 2, data)])).tensors
    assert inspected.statistics is None


def a_bit_of_everything(parts):
    entries = [
        parts.entry("general.architecture", 8, "llama"),
        parts.entry("general.name", 8, "[bold]Tiny"),
        parts.entry("general.file_type", 4, 41),
    ]
    dense = (np.arange(512 * 4) % 3 - 1).reshape(4, 512).astype(np.float32) * np.float32(0.25)
    tensors = [
        ("token_embd.weight", (64, 16), 0, parts.f32(16, 64)),
        ("blk.0.attn_q.weight", (512, 8), 42, parts.stq1_0_blocks(8, 512)),
        ("blk.0.attn_k.weight", (512, 4), 42, parts.stq1_0_blocks(4, 512, seed=1)),
        ("blk.0.attn_v.weight", (512, 4), 512, parts.sherry_blocks(4, 512)),
        ("blk.0.ffn_up.weight", (512, 4), 35, pack("TQ2_0", dense)),
        ("blk.0.ffn_down.weight", (100,), 97, bytes(160)),
    ]
    return parts.gguf_bytes(tensors, entries)


GOLDEN = """\
x.gguf: GGUF 3, 6,688 bytes, alignment 32, general.architecture llama, general.name [bold]Tiny, general.file_type 41, no sherry.format_version, which means 1
types
┏━━━━━━━━━━━━━━━━┳━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━┳━━━━━━━━━┓
┃ type           ┃ id  ┃ tensors ┃ weights ┃ bytes ┃     bpw ┃
┡━━━━━━━━━━━━━━━━╇━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━╇━━━━━━━━━┩
│ F32            │ 0   │       1 │   1,024 │ 4,096 │ 32.0000 │
│ TQ2_0          │ 35  │       1 │   2,048 │   528 │  2.0625 │
│ STQ1_0         │ 42  │       2 │   6,144 │ 1,008 │  1.3125 │
│ unknown        │ 97  │       1 │     100 │   160 │ 12.8000 │
│ SHERRY         │ 512 │       1 │   2,048 │   352 │  1.3750 │
├────────────────┼─────┼─────────┼─────────┼───────┼─────────┤
│ all            │     │       6 │  11,364 │ 6,144 │  4.3252 │
│ the whole file │     │       6 │  11,364 │ 6,688 │  4.7082 │
└────────────────┴─────┴─────────┴─────────┴───────┴─────────┘
ternary tensors
┏━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━┓
┃                      ┃ TQ2_0 (id 35) ┃ STQ1_0 (id 42) ┃   SHERRY (id 512) ┃
┡━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━┩
│ tensors              │             1 │              2 │                 1 │
│ grid                 │ dense ternary │      stride 16 │ consecutive fours │
│ a scale is shared by │        tensor │            256 │               128 │
│ smallest scale but 0 │          0.25 │          0.687 │            0.6582 │
│ median               │          0.25 │          1.331 │              1.25 │
│ largest              │          0.25 │          1.945 │             1.992 │
│ negative scales      │             0 │              0 │                 0 │
│ scales not finite    │             0 │              0 │                 0 │
│ scales of 0          │             0 │              0 │                 0 │
│ blocks of zeros      │             0 │              0 │                 0 │
└──────────────────────┴───────────────┴────────────────┴───────────────────┘
codes of STQ1_0 (id 42), percent of 1,536 groups (1/32 is 3.125):
   0..7   3.711  4.167  3.451  3.060  3.516  3.060  2.930  3.516
   8..15  3.451  3.255  2.669  2.734  2.799  2.799  2.865  3.190
  16..23  2.865  2.734  3.190  2.995  2.474  3.190  2.539  3.646
  24..31  3.320  2.539  3.776  3.125  3.190  3.320  3.385  2.539
codes of SHERRY (id 512), percent of 512 groups (1/32 is 3.125):
   0..7   4.688  3.125  2.930  3.320  2.734  2.344  2.148  5.078
   8..15  3.320  4.297  2.734  1.953  3.320  2.148  2.148  4.297
  16..23  2.539  2.539  3.906  3.125  2.734  4.102  3.516  5.078
  24..31  2.930  2.148  2.930  3.516  2.148  3.516  2.734  1.953
id 42 (2 tensors): STQ1_0, as in its first files; the id is Q2_0's since
id 97 (1 tensor): unknown, and neither STQ1_0 nor SHERRY nor SHERRY_G32 nor SHERRY_2P by its bytes
id 512 (1 tensor): SHERRY, a private id of this project
llama.cpp without the patch, at the pin: refuses or misreads the file, as it takes id 42 for Q2_0, but these 2 tensors are STQ1_0; it does not know id 97 (unknown, 1 tensor); it does not know id 512 (SHERRY, 1 tensor)
"""  # noqa: E501


def test_golden_text(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_bytes(a_bit_of_everything(parts))
    assert main(["inspect", "x.gguf"]) == 0
    assert capsys.readouterr().out == GOLDEN


def test_golden_json(parts, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(a_bit_of_everything(parts))
    found = as_json(inspect(path))
    tensors = found.pop("tensors")
    assert found == {
        "file": str(path),
        "bytes": 6688,
        "part": None,
        "gguf_version": 3,
        "alignment": 32,
        "architecture": "llama",
        "name": "[bold]Tiny",
        "file_type": 41,
        "sherry.format_version": None,
        "types": [
            {"type": "F32", "id": 0, "tensors": 1, "weights": 1024, "bytes": 4096, "bits_per_weight": 32.0},
            {"type": "TQ2_0", "id": 35, "tensors": 1, "weights": 2048, "bytes": 528, "bits_per_weight": 2.0625},
            {"type": "STQ1_0", "id": 42, "tensors": 2, "weights": 6144, "bytes": 1008, "bits_per_weight": 1.3125},
            {"type": "unknown", "id": 97, "tensors": 1, "weights": 100, "bytes": 160, "bits_per_weight": 12.8},
            {"type": "SHERRY", "id": 512, "tensors": 1, "weights": 2048, "bytes": 352, "bits_per_weight": 1.375},
        ],
        "all": {"tensors": 6, "weights": 11364, "bytes": 6144, "bits_per_weight": 8 * 6144 / 11364},
        "oddities": [
            "id 42 (2 tensors): STQ1_0, as in its first files; the id is Q2_0's since",
            "id 97 (1 tensor): unknown, and neither STQ1_0 nor SHERRY nor SHERRY_G32 nor SHERRY_2P by its bytes",
            "id 512 (1 tensor): SHERRY, a private id of this project",
        ],
        "stock_llama_cpp": {
            "reads": False,
            "because": [
                "it takes id 42 for Q2_0, but these 2 tensors are STQ1_0",
                "it does not know id 97 (unknown, 1 tensor)",
                "it does not know id 512 (SHERRY, 1 tensor)",
            ],
        },
    }
    assert tensors[4] == {
        "name": "blk.0.ffn_up.weight",
        "shape": [512, 4],
        "type": "TQ2_0",
        "id": 35,
        "bytes": 528,
        "bytes_with_padding": 544,
        "ternary": {
            "grid": "dense ternary",
            "groups": {"consecutive": 512, "stride16": 512},
            "groups_with_one_zero": {"consecutive": 341, "stride16": 341},
            "codes": None,
            "scales": {"min": 0.25, "median": 0.25, "max": 0.25, "negative": 0, "zero": 0, "not_finite": 0},
            "empty_blocks": 0,
            "scale_shared_by": "tensor",
        },
    }


def test_json_of_the_command(parts, tmp_path, capsys):
    path = tmp_path / "x.gguf"
    path.write_bytes(a_bit_of_everything(parts))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == as_json(inspect(path))


def test_what_stock_llama_cpp_reads(build):
    """Types up to 42 that are what their ids say."""
    weights = on_grid("consecutive")
    tensors = [(name, (K, ROWS), IDS[name], pack(name, weights)) for name in ("TQ1_0", "TQ2_0", "Q2_0", "Q4_0")]
    assert inspect(build(tensors)).refusals == []
    for name, said in (("SHERRY", "id 512"), ("SHERRY_G32", "id 520"), ("SHERRY_2P", "id 521"), ("STQ1_0", "id 43")):
        found = inspect(build([("a", (K, ROWS), IDS[name], pack(name, on_grid(OWN[name])))]))
        assert f"does not know {said}" in found.refusals[0]
        assert len(found.refusals) == 1
    (long,) = inspect(build([("n" * 64, (4,), 0, bytes(16))])).refusals
    assert "names may have 63 bytes" in long


def test_contradictions_are_told_and_not_decoded(build, parts):
    tensors = [("a", (512, 4), 42, parts.stq1_0_blocks(4, 512)), ("b", (512, 4), 42, parts.q2_0_blocks(4, 512))]
    found = inspect(build(tensors))
    assert [oddity[:38] for oddity in found.oddities] == [
        "a: is STQ1_0, and others of that id ar", "b: is Q2_0, and others of that id are ",
    ]  # fmt: skip
    assert found.refusals == ["the bytes of 2 tensors may not be what it takes them for, the first is a"]
    assert [inspected.statistics for inspected in found.tensors] == [None, None]


def test_memory(build, parts):
    """Of a matrix whose weights would fill 256 MB as floats, a few chunks are in memory at a time."""
    rows = np.frombuffer(parts.sherry_blocks(256, 4096), dtype=np.uint8)
    path = build([("a", (4096, 16384), 512, np.tile(rows, 64).tobytes())])
    tracemalloc.start()
    found = inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tensors[0].statistics.grid == "consecutive fours"
    assert peak < 48 * tensor._CHUNK  # bytes for a weight of a chunk: measured were 30
