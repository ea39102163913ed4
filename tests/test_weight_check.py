"""The exact check of weights: right blocks pass, and each kind of damage is counted and located."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.blocks import expand, pack
from sherry_gguf.format import BLOCK_BYTES, QS_BYTES
from sherry_gguf.quantize import quantize
from sherry_gguf.weight_check import WeightCheck, compare

ROWS, K = 5, 384
NAME = "blk.0.attn_q.weight"


@pytest.fixture
def trained():
    """Weights as the trained forward has them, alpha unrounded, and the blocks that hold them."""
    rng = np.random.default_rng(11)
    latent = rng.normal(scale=0.02, size=(ROWS, K)).astype(np.float32)
    latent[1, 128:256] = 0
    grid = quantize(latent)
    return expand(grid.codes, grid.scales), pack(grid.codes, grid.scales)


def test_right_blocks_pass(trained):
    weights, blocks = trained
    found = compare(NAME, blocks, weights)
    assert (found.tensors, found.weights, found.scales) == (1, ROWS * K, ROWS * K // 128)
    assert (found.wrong_weights, found.wrong_scales, found.first_wrong) == (0, 0, None)
    assert 0 < found.max_scale_error <= 2.0**-11


def test_a_flipped_sign_is_three_wrong_weights(trained):
    weights, blocks = trained
    blocks[2, BLOCK_BYTES + QS_BYTES] ^= 1 << 5  # row 2, block 1, sign of group 5
    found = compare(NAME, blocks, weights)
    assert (found.wrong_weights, found.wrong_scales) == (3, 0)
    assert found.first_wrong == f"{NAME}, row 2, group 37 (weights 148..151)"


def test_one_second_sign_is_one_wrong_weight(trained):
    weights, blocks = trained
    blocks[0, 0] ^= 1  # row 0, group 0: the second weight's sign
    assert compare(NAME, blocks, weights).wrong_weights == 1


@pytest.mark.parametrize("steps", [1, -1])
def test_a_scale_off_by_one_ulp_is_wrong(trained, steps):
    weights, blocks = trained
    d = blocks[4, 2 * BLOCK_BYTES - 2 : 2 * BLOCK_BYTES].view(np.uint16)  # row 4, block 1
    d += np.uint16(steps % 65536)
    found = compare(NAME, blocks, weights)
    assert (found.wrong_weights, found.wrong_scales) == (0, 1)
    assert found.first_wrong == f"{NAME}, row 4, group 32 (weights 128..131)"
    assert found.max_scale_error > 2.0**-12


def test_a_block_of_zeros_must_stay_zero_whatever_its_codes(trained):
    weights, blocks = trained
    blocks[1, BLOCK_BYTES : BLOCK_BYTES + 3] = 0x77  # codes under a scale of 0 mean nothing
    assert compare(NAME, blocks, weights).first_wrong is None
    blocks[1, 2 * BLOCK_BYTES - 1] = 0x3C  # 1.0
    found = compare(NAME, blocks, weights)
    assert found.wrong_scales == 1
    assert found.max_scale_error == np.inf


def test_sums_keep_the_first_and_the_worst():
    a = WeightCheck(1, 128, 0, 1, 0, 1e-4, None)
    b = WeightCheck(1, 256, 3, 2, 0, 3e-4, "b")
    c = WeightCheck(1, 256, 1, 2, 1, 2e-4, "c")
    assert a + b + c == WeightCheck(3, 640, 4, 5, 1, 3e-4, "b")
