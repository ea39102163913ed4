"""The C reference of STQ1_0: bytes equal to those of an independent NumPy implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import stq1_oracle as oracle
from operands import IMPORTANCE, importance_of

pytestmark = pytest.mark.runtime

F32 = npt.NDArray[np.float32]


def on_grid(rows: int, k: int) -> F32:
    """Random codes and random fp16 scales, the smallest subnormal and the largest number among them."""
    rng = np.random.default_rng(k)
    scales = rng.uniform(1e-3, 1, (rows, k // 256)).astype(np.float16).astype(np.float32)
    scales[0, 0], scales[-1, -1] = 2.0**-24, 65504
    return oracle.expand(rng.integers(0, 32, (rows, k // 4)), scales)


def test_golden_bytes(ggml: Any, stq1_0: Any) -> None:
    # group g has code g, groups 32..63 have codes 31..0; d = 1.5
    up, down = "1032547698badcfe", "efcdab8967452301"
    data = bytes.fromhex(up + up + down + down + "0000ffff" + "ffff0000" + "003e")
    weights = ggml.dequantize(np.frombuffer(data, np.uint8).reshape(1, -1), stq1_0)
    signs = "".join({0: "0", 1.5: "+", -1.5: "-"}[w] for w in weights[0].tolist())
    # lanes 0, 1, 2, 3 of the groups 0..15, each 16 weights beside each other; then of the groups 16..31 and so on
    lanes = "0000++++++++++++", "++++0000+-+-+-+-", "+-+-+-+-0000++--", "++--++--++--0000"
    negated = [lane.translate(str.maketrans("+-", "-+")) for lane in lanes]
    backwards = [lane[::-1] for lane in (*negated, *lanes)]
    assert signs == "".join([*lanes, *negated, *backwards])
    assert ggml.quantize(weights, kind=stq1_0).tobytes() == data
    assert oracle.quantize(weights).tobytes() == data


@pytest.mark.parametrize("k", [256, 768, 4096])
def test_dequantize_equals_the_oracle(ggml: Any, stq1_0: Any, k: int) -> None:
    blocks = np.random.default_rng(k).integers(0, 256, (5, k // 256 * 42), dtype=np.uint8)
    blocks[:, 41::42] &= 0x3F
    np.testing.assert_array_equal(ggml.dequantize(blocks, stq1_0), oracle.dequantize(blocks))


@pytest.mark.parametrize("k", [256, 768, 4096])
def test_quantize_equals_the_oracle(ggml: Any, stq1_0: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    weights = (rng.standard_normal((8, k)) * 0.02).astype(np.float32)
    weights[1] = np.where(weights[1] < 0, -0.5, 0.5)  # every group tied four ways
    weights[2] = np.round(weights[2] * 100) / 100 + np.float32(0.005)  # many ties
    weights[3, :256] = 0
    weights[4] *= np.float32(1e-36)  # subnormal floats: the scale rounds to 0
    weights[5, ::4] = -0.0
    weights[6, :128] = 0  # one half is zero, and has no code of its own
    data = ggml.quantize(weights, kind=stq1_0)
    np.testing.assert_array_equal(data, oracle.quantize(weights))
    assert not data[4].any()
    assert not data[3, :42].any()


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_weights_on_the_grid_come_back(ggml: Any, stq1_0: Any, importance: str) -> None:
    weights = on_grid(8, 768)
    weights[3, 256:512] = 0
    m = importance_of(importance, 768)
    data = ggml.quantize(weights, m, stq1_0)
    np.testing.assert_array_equal(ggml.dequantize(data, stq1_0), weights)
    np.testing.assert_array_equal(ggml.quantize(ggml.dequantize(data, stq1_0), m, stq1_0), data)


def errors(weights: F32, values: F32, m: F32 | float = 1.0) -> npt.NDArray[np.float64]:
    """Of each block."""
    difference = weights.astype(np.float64) - values
    total: npt.NDArray[np.float64] = (m * difference**2).reshape(-1, 256).sum(axis=1)
    return total


def test_no_other_scale_has_a_smaller_error(ggml: Any, stq1_0: Any) -> None:
    weights = np.random.default_rng(2).standard_normal((8, 1024)).astype(np.float32)
    codes, scales = oracle.unpack(ggml.quantize(weights, kind=stq1_0))
    best = errors(weights, oracle.expand(codes, scales))
    for factor in (0.5, 0.9, 1 + 2.0**-9, 1 - 2.0**-9, 1.1):  # 2^-9: more than what rounding to fp16 moves it
        assert (best < errors(weights, oracle.expand(codes, scales * np.float32(factor)))).all()
    largest = np.abs(weights).reshape(8, -1, 256).max(axis=-1)
    assert best.sum() < 0.25 * errors(weights, oracle.expand(codes, largest)).sum()


def test_importance_lowers_the_weighted_error(ggml: Any, stq1_0: Any) -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((16, 1024)).astype(np.float32)
    m = rng.exponential(1, 1024).astype(np.float32) ** 2
    plain = errors(weights, oracle.dequantize(ggml.quantize(weights, kind=stq1_0)), m)
    fitted = errors(weights, oracle.dequantize(ggml.quantize(weights, m, stq1_0)), m)
    assert (fitted <= plain * (1 + 2.0**-10)).all()  # the scale is rounded to fp16 after the fit
    assert fitted.sum() < 0.9 * plain.sum()


def test_changed_groups(ggml: Any, stq1_0: Any) -> None:
    weights = oracle.expand(np.random.default_rng(4).integers(0, 32, (1, 256)), np.ones((1, 4), np.float32))
    assert ggml.changed_groups(weights, stq1_0) == 0
    weights[0, 256:512] = 0  # a block of zeros has a code
    assert ggml.changed_groups(weights, stq1_0) == 0
    weights[0, 512:640] = 0  # half a block has none
    assert ggml.changed_groups(weights, stq1_0) == 32
    weights[0, 768:] *= np.float32(2.0**-30)
    assert ggml.changed_groups(weights, stq1_0) == 32 + 64
    weights[0, 0:256] = 1
    weights[0, [5, 5 + 48]] = 0  # lanes 0 and 3 of group 5
    assert ggml.changed_groups(weights, stq1_0) == 32 + 64 + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("position", [0, 127, 128, 255])
def test_what_does_not_fit_never_becomes_a_weight(ggml: Any, stq1_0: Any, value: float, position: int) -> None:
    weights = on_grid(1, 512)
    weights[0, 256 + position] = value
    for m in (None, np.ones(512, np.float32)):
        data = ggml.quantize(weights, m, stq1_0)
        assert not ggml.is_valid(stq1_0.type_id, data)
        assert not np.isfinite(oracle.unpack(data)[1][0, 1])


@pytest.mark.parametrize(
    ("d", "valid"),
    [(0, True), (1, True), (0x7BFF, True), (0x7C00, False), (0x7E00, False), (0x8000, False), (0xBC00, False)],
)
def test_validation(ggml: Any, stq1_0: Any, d: int, valid: bool) -> None:
    data = oracle.quantize(on_grid(1, 768))
    assert ggml.is_valid(stq1_0.type_id, data)
    data[0, 82:84] = d & 0xFF, d >> 8
    assert ggml.is_valid(stq1_0.type_id, data) is valid
    assert not ggml.is_valid(stq1_0.type_id, data[:, :-1].copy())
