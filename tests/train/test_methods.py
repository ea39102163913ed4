"""The forwards of the methods: Sherry's against the quantizer of the converter, the others against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sherry_gguf.train import methods
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize


def noise(rows, length, dtype=torch.float32):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(rows), dtype=dtype)


def topk_kept(magnitudes):
    groups = magnitudes.unflatten(-1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(-1, groups.topk(3, dim=-1).indices, True).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mask_is_that_of_topk(dtype):
    """In bfloat16 some groups have several smallest."""
    magnitudes = noise(64, 512, dtype).abs()
    groups = magnitudes.unflatten(-1, (-1, 4))
    tied = (groups == groups.amin(-1, keepdim=True)).sum(-1) > 1
    assert bool(tied.any()) == (dtype == torch.bfloat16)
    assert torch.equal(methods.keep_three(magnitudes), topk_kept(magnitudes))


def test_of_equals_topk_chooses():
    """All groups of three magnitudes, alone and all together."""
    groups = torch.cartesian_prod(*[torch.tensor([1.0, 2.0, 3.0])] * 4)
    assert torch.equal(methods.keep_three(groups.flatten()), topk_kept(groups.flatten()))
    for group in groups:
        assert torch.equal(methods.keep_three(group), topk_kept(group))


@pytest.mark.parametrize(
    ("granularity", "run"),
    [(Granularity(), 128), (Granularity("per_group", 32), 32), (Granularity("per_channel"), 512),
     (Granularity("per_tensor"), 24 * 512)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sherry_is_what_the_converter_makes(granularity, run, dtype):
    latents = noise(24, 512, dtype).float()
    forward = methods.sherry(latents.reshape(-1, run)).reshape(24, 512).numpy()
    grid = quantize(latents.numpy(), granularity)
    expected = expand(grid.codes, grid.scales)
    assert np.array_equal(np.sign(forward), np.sign(expected))
    # alpha is a sum in float32 here and in float64 there
    assert np.allclose(forward, expected, rtol=1e-6, atol=0)


def test_a_run_of_zeros_stays_zero():
    for quantizer in methods.QUANTIZERS.values():
        assert quantizer(torch.zeros(2, 8)).tolist() == [[0.0] * 8] * 2


RUN = torch.tensor([[4.0, -2.0, 0.5, -1.5, 0.1, 3.0, -0.9, 0.0]])  # mean magnitude 1.5


def test_absmean_by_hand():
    assert methods.absmean(RUN).tolist() == [[1.5, -1.5, 0, -1.5, 0, 1.5, -1.5, 0]]


def test_twn_by_hand():
    """Kept are 4, 2, 1.5 and 3, all above 1.125."""
    assert methods.twn(RUN).tolist() == [[2.625, -2.625, 0, -2.625, 0, 2.625, 0, 0]]


def test_binary_by_hand():
    assert methods.binary(RUN).tolist() == [[1.5, -1.5, 1.5, -1.5, 1.5, 1.5, -1.5, 0]]
