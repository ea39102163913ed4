"""The quantizer against the trainer's rule, written here with PyTorch's own topk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainer import trained_forward

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import PATTERNS, from_fours
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize


def latents(rows: int, k: int, seed: int = 0) -> np.ndarray:
    """bf16 noise as float32: about a group in 400 has ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, k, generator=generator) * 0.02).bfloat16().float().numpy()


def test_codes_of_the_shipped_checkpoint_are_those_of_pytorch(tiny_checkpoint):
    state = load_file(tiny_checkpoint / "model.safetensors")
    layers = [name for name in state if name.endswith("_proj.weight")]
    assert len(layers) == 42
    ties = 0
    for name in layers:
        w = state[name].float()
        expected = trained_forward(w, (w.numel() // 128, 128))
        found = quantize(w.numpy())
        ties += found.ties
        assert np.array_equal(PATTERNS[found.codes].reshape(w.shape), expected.sign().numpy()), name
        alpha = expected.abs().reshape(w.shape[0], -1, 128).amax(dim=-1)
        assert np.array_equal(found.scales, alpha.float().numpy()), name
    assert ties > 1000  # the rule for ties was put to the test


@pytest.mark.parametrize(
    ("granularity", "runs"),
    [
        (Granularity("per_group", 128), (48, 128)),
        (Granularity("per_group", 384), (16, 384)),
        (Granularity("per_group", 32), (192, 32)),
        (Granularity("per_channel"), (8, 768)),
        (Granularity("per_tensor"), (1, 8 * 768)),
    ],
)
def test_granularities(granularity, runs):
    w = latents(8, 768)
    expected = trained_forward(torch.from_numpy(w), runs).float().numpy()
    found = quantize(w, granularity)
    assert np.array_equal(expand(found.codes, found.scales), expected)


def test_values_that_differ_by_many_powers_of_two():
    rng = np.random.default_rng(1)
    w = (rng.standard_normal((16, 256)) * 2.0 ** rng.integers(-12, 4, (16, 256))).astype(np.float32)
    expected = trained_forward(torch.from_numpy(w), (32, 128)).float().numpy()
    found = quantize(w)
    assert np.array_equal(expand(found.codes, found.scales), expected)


def test_rows_that_no_block_fits_still_have_a_grid():
    w = latents(4, 576)
    found = quantize(w, Granularity("per_channel"))
    assert found.scales.shape == (4, 576 // 64)
    expected = trained_forward(torch.from_numpy(w), (4, 576)).float().numpy()
    assert np.array_equal(expand(found.codes, found.scales), expected)
    with pytest.raises(SherryError, match="no multiple of 128"):
        sherry.BLOCKS.pack(found.codes, found.scales)


def test_all_ties_at_once():
    """Every group of four values out of three magnitudes and two signs: whatever topk drops is zeroed."""
    values = np.array([-2, -1, 1, 2, 3], dtype=np.float32)
    groups = np.stack(np.meshgrid(values, values, values, values), axis=-1).reshape(-1, 4)
    w = np.resize(groups, (groups.shape[0] // 32 + 1, 128))
    expected = trained_forward(torch.from_numpy(w), w.shape).float().numpy()
    found = quantize(w)
    assert np.array_equal(expand(found.codes, found.scales), expected)


def test_without_pytorch_the_first_of_the_smallest_is_zeroed():
    w = np.tile(np.array([3, -1, 1, 2, 1, 1, 1, -1], dtype=np.float32), (1, 16))
    found = quantize(w, ties="first")
    assert PATTERNS[found.codes[0, :2]].tolist() == [[1, 0, 1, 1], [0, 1, 1, -1]]
    assert found.ties == 32


def test_scales_are_rounded_to_fp16_once():
    # (2**11 + 1) / 2**11 lies between fp16 neighbours 1 and 1 + 2**-10: half way, to even
    w = np.tile(np.array([0.001, 1, 1, 1], dtype=np.float32) * np.float32(1 + 2.0**-11), (1, 32))
    assert sherry.BLOCKS.unpack(sherry.BLOCKS.pack(quantize(w).codes, quantize(w).scales))[1] == 1.0


def test_a_block_of_zeros_in_a_longer_run():
    w = latents(2, 512)
    w[0, 128:256] = 0
    found = quantize(w, Granularity("per_channel"))
    assert found.scales[0, 1] == 0
    assert not found.codes[0, 32:64].any()
    expected = trained_forward(torch.from_numpy(w), (2, 512)).float().numpy()
    assert np.array_equal(expand(found.codes, found.scales), expected)


def test_a_bare_group_is_refused_or_filled():
    w = latents(4, 256)
    w[3, 200:204] = (0, -0.5, 0, 0.25)
    with pytest.raises(SherryError, match=r"1 groups .* row 3, group 50 \(weights 200\.\.203\)"):
        quantize(w)
    found = quantize(w, allow_bare_groups=True)
    assert PATTERNS[found.codes[3, 50]].tolist() == [0, -1, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    w = latents(4, 256)
    w[2, 130] = value
    with pytest.raises(SherryError, match=r"1 weights are not finite, .* row 2, group 32 "):
        quantize(w)


def test_infinite_groups_are_refused_without_a_warning():
    weights = np.full((3, 256), 0.5, dtype=np.float32)
    weights[1, 8:12] = np.inf
    with (
        np.errstate(invalid="raise"),
        pytest.raises(SherryError, match=r"4 weights are not finite, .* row 1, group 2 "),
    ):
        quantize(weights)


@pytest.mark.parametrize("granularity", [Granularity(), Granularity("per_channel"), Granularity("per_tensor")], ids=str)
def test_a_matrix_without_rows(granularity):
    found = quantize(np.empty((0, 256), dtype=np.float32), granularity)
    assert (found.codes.shape, found.scales.shape, found.ties) == ((0, 64), (0, 2), 0)


def test_shapes_that_cannot_be():
    with pytest.raises(SherryError, match="shape"):
        quantize(np.ones(128, dtype=np.float32))
    with pytest.raises(SherryError, match="rows of 130"):
        quantize(np.ones((2, 130), dtype=np.float32))
    with pytest.raises(SherryError, match="group_size 128 does not divide rows of 192"):
        quantize(np.ones((2, 192), dtype=np.float32))
    with pytest.raises(SherryError, match="group_size 6 "):
        quantize(np.ones((2, 192), dtype=np.float32), Granularity("per_group", 6))


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_groups_of_weights_16_apart(size):
    """One weight at a time: the smallest of g, g + 16, g + 32, g + 48 of each 64 is zeroed, alpha is of ``size``."""
    w = np.random.default_rng(size).standard_normal((3, 512)).astype(np.float32)
    found = quantize(w, Granularity("per_group", size), grid="stride16")
    assert found.grid == "stride16"
    expected = np.empty_like(w)
    for row in range(3):
        for start in range(0, 512, size):
            run = w[row, start : start + size].astype(np.float64)
            kept = np.ones(size, dtype=bool)
            for g in range(size // 4):
                members = [g // 16 * 64 + g % 16 + 16 * p for p in range(4)]
                kept[min(members, key=lambda i: abs(run[i]))] = False
            alpha = np.float32(np.abs(run[kept]).sum() / (0.75 * size))
            expected[row, start : start + size] = np.sign(run) * kept * alpha
    assert np.array_equal(from_fours(expand(found.codes, found.scales), "stride16"), expected)


def test_what_does_not_fit_weights_16_apart():
    w = np.ones((2, 160), dtype=np.float32)
    with pytest.raises(SherryError, match="rows of 160 weights are no multiple of 64"):
        quantize(w, Granularity("per_channel"), grid="stride16")
    w = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    with pytest.raises(SherryError, match="group_size 32 does not divide rows of 256 weights into stride16 groups"):
        quantize(w, Granularity("per_group", 32), grid="stride16")
    w[1, [70, 86]] = 0
    with pytest.raises(SherryError, match=r"1 groups .* row 1, group 22 \(weights 70, 86, 102, 118\)"):
        quantize(w, Granularity("per_group", 256), grid="stride16")
    w[1, 86] = np.nan
    with pytest.raises(SherryError, match=r"not finite, the first in row 1, group 22 \(weights 70, 86, 102, 118\)"):
        quantize(w, Granularity("per_group", 256), grid="stride16")
