"""The exact check of weights: right blocks pass, and each tensor_type of damage is counted and located."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.formats import sherry, stq1_0
from sherry_gguf.formats.groups import PATTERNS, from_fours, to_fours
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0
from sherry_gguf.formats.table import named, tensor_types
from sherry_gguf.weights.compare import WeightCheck, compare, count_changed
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize

ROWS, K = 5, 384
NAME = "blk.0.attn_q.weight"


@pytest.fixture
def trained():
    """Weights as the trained forward has them, alpha unrounded, and the blocks that hold them."""
    rng = np.random.default_rng(11)
    latent = rng.normal(scale=0.02, size=(ROWS, K)).astype(np.float32)
    latent[1, 128:256] = 0
    grid = quantize(latent)
    return expand(grid.codes, grid.scales), sherry.BLOCKS.pack(grid.codes, grid.scales)


def test_right_blocks_pass(trained):
    weights, blocks = trained
    found = compare(NAME, blocks, weights, SHERRY)
    assert (found.tensors, found.weights, found.scales) == (1, ROWS * K, ROWS * K // 128)
    assert (found.wrong_weights, found.wrong_scales, found.first_wrong) == (0, 0, None)
    assert 0 < found.max_scale_error <= 2.0**-11


def test_a_flipped_sign_is_three_wrong_weights(trained):
    weights, blocks = trained
    blocks[2, SHERRY.block_bytes + 16] ^= 1 << 5  # row 2, block 1, sign of group 5
    found = compare(NAME, blocks, weights, SHERRY)
    assert (found.wrong_weights, found.wrong_scales) == (3, 0)
    assert found.first_wrong == f"{NAME}, row 2, group 37 (weights 148..151)"


def test_one_second_sign_is_one_wrong_weight(trained):
    weights, blocks = trained
    blocks[0, 0] ^= 1  # row 0, group 0: the second weight's sign
    assert compare(NAME, blocks, weights, SHERRY).wrong_weights == 1


@pytest.mark.parametrize("steps", [1, -1])
def test_a_scale_off_by_one_ulp_is_wrong(trained, steps):
    weights, blocks = trained
    d = blocks[4, 2 * SHERRY.block_bytes - 2 : 2 * SHERRY.block_bytes].view(np.uint16)  # row 4, block 1
    d += np.uint16(steps % 65536)
    found = compare(NAME, blocks, weights, SHERRY)
    assert (found.wrong_weights, found.wrong_scales) == (0, 1)
    assert found.first_wrong == f"{NAME}, row 4, group 32 (weights 128..131)"
    assert found.max_scale_error > 2.0**-12


def test_a_block_of_zeros_must_stay_zero_whatever_its_codes(trained):
    weights, blocks = trained
    blocks[1, SHERRY.block_bytes : SHERRY.block_bytes + 3] = 0x77  # codes under a scale of 0 mean nothing
    assert compare(NAME, blocks, weights, SHERRY).first_wrong is None
    blocks[1, 2 * SHERRY.block_bytes - 1] = 0x3C  # 1.0
    found = compare(NAME, blocks, weights, SHERRY)
    assert found.wrong_scales == 1
    assert found.max_scale_error == np.inf


@pytest.fixture
def other_types(pinned_gguf):
    """name -> (type, weights of one alpha per channel, the bytes that hold them)."""
    from sherry_gguf.formats.registration import use_exact_q4_0

    use_exact_q4_0()
    latent = np.random.default_rng(12).normal(scale=0.02, size=(ROWS, 512)).astype(np.float32)
    grid = quantize(latent, Granularity("per_channel"))
    weights = expand(grid.codes, grid.scales)
    rounded = expand(grid.codes, grid.scales.astype(np.float16).astype(np.float32))

    def make(name):
        return named(name), weights, pinned_gguf.quants.quantize(rounded, pinned_gguf.GGMLQuantizationType[name])

    return make


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0", "Q4_0"])
def test_other_types(name, other_types):
    tensor_type, weights, data = other_types(name)
    found = compare(NAME, data, weights, tensor_type)
    assert (found.weights, found.scales) == (weights.size, weights.size // tensor_type.block)
    assert (found.wrong_weights, found.wrong_scales, found.first_wrong) == (0, 0, None)
    assert 0 < found.max_scale_error <= 2.0**-11

    # 18 bytes of d and codes, or codes and d: the first and the last byte of row 3's last block
    block = data[3, -tensor_type.block_bytes :]
    before_codes = name in ("Q2_0", "Q4_0")
    first_of_block = weights.shape[1] - tensor_type.block
    for place, is_scale in ((0, before_codes), (tensor_type.block_bytes - 2, not before_codes)):
        damaged = block.copy()
        block[place] += 1
        found = compare(NAME, data, weights, tensor_type)
        block[:] = damaged
        assert (found.wrong_weights > 0, found.wrong_scales) == (not is_scale, int(is_scale))
        if is_scale:
            assert found.first_wrong.startswith(f"{NAME}, row 3, group {first_of_block // 4} ")
    assert compare(NAME, data, weights, tensor_type).first_wrong is None


CONSECUTIVE = [tensor_type for tensor_type in tensor_types() if tensor_type.grid != "stride16"]
ANYWHERE = [tensor_type for tensor_type in tensor_types() if tensor_type.grid is None]


def changed_by(types, weights):
    """name -> how many weights change; that ``holds`` says the same is checked on the way."""
    changed = {tensor_type.name: count_changed(weights, tensor_type) for tensor_type in types}
    assert [tensor_type.holds(weights) for tensor_type in types] == [n == 0 for n in changed.values()]
    return changed


def test_scales_that_differ_within_a_block():
    """Of 512 weights 128 have another alpha: SHERRY holds it, larger blocks change the smaller of the two."""
    latent = np.random.default_rng(13).normal(size=(ROWS, 512)).astype(np.float32)
    grid = quantize(latent, Granularity("per_channel"))
    scales = np.ones_like(grid.scales)
    assert not any(changed_by(CONSECUTIVE, expand(grid.codes, scales)).values())
    for other in (0.5, 2):
        scales[2, 1] = other
        changed = changed_by(CONSECUTIVE, expand(grid.codes, scales))
        assert changed == {"SHERRY": 0, "TQ1_0": 96, "SHERRY_G32": 0, "TQ2_0": 96, "Q2_0": 0, "SHERRY_2P": 0, "Q4_0": 0}
    # one alpha in fp16, though not in float32
    scales[2, 1] = 1.0001
    assert not any(changed_by(CONSECUTIVE, expand(grid.codes, scales)).values())
    # 128 zeros are held beside any other scale
    scales[2, 1] = 0
    assert not any(changed_by(CONSECUTIVE, expand(grid.codes, scales)).values())


def test_groups_of_weights_16_apart_are_held_by_all_but_sherry():
    latent = np.random.default_rng(14).normal(size=(ROWS, 512)).astype(np.float32)
    grid = quantize(latent, Granularity("per_group", 256), grid="stride16")
    weights = from_fours(expand(grid.codes, grid.scales), "stride16")
    changed = changed_by(tensor_types(), weights)
    assert 0 < changed.pop("SHERRY_G32") <= changed.pop("SHERRY") < weights.size // 2
    assert changed.pop("SHERRY_2P") > 0
    assert not any(changed.values())
    # 128 zeros beside 128 others: four zeros of a group cannot stay, one can
    weights[1, 128:256] = 0
    changed = changed_by(tensor_types(), weights)
    assert changed["STQ1_0"] == 96
    assert changed["TQ2_0"] == changed["Q4_0"] == 0


def test_grids_are_minded_by_the_types_that_have_one():
    weights = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (1, 128))
    weights[0, 32:64] = 0
    changed = changed_by(tensor_types(), weights)
    # SHERRY must make three of four zeros something. With STQ1_0's groups each column of 16 is one weight of every
    # neighbourhood: a group is all zeros or has none, or both by halves.
    assert (changed["SHERRY"], changed["SHERRY_G32"]) == (24, 0)
    assert changed["STQ1_0"] > 0
    assert not any(changed_by(ANYWHERE, weights).values())


@pytest.mark.parametrize("seed", range(6))
def test_no_bytes_keep_more_weights(seed):
    """Every scale and every code of a group are tried, in a block of few types of weights at random."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([0, 0, 1, -1, 0.5, -0.5, 0.25], (2, 256), p=rng.dirichlet(np.ones(7))).astype(np.float32)
    for tensor_type in (STQ1_0, SHERRY, SHERRY_G32):
        fours = to_fours(weights, tensor_type.grid).reshape(-1, tensor_type.block // 4, 1, 1, 4)
        scales = np.array([0, 1, 0.5, 0.25], dtype=np.float32).reshape(-1, 1, 1)
        kept = (fours == scales * PATTERNS).sum(axis=-1).max(axis=-1).sum(axis=1)  # [blocks, scales]
        assert count_changed(weights, tensor_type) == weights.size - kept.max(axis=1).sum()


def test_rows_that_are_no_whole_blocks_are_not_held():
    weights = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (2, 48))
    held_by = [tensor_type.name for tensor_type in tensor_types() if tensor_type.holds(weights)]
    assert held_by == ["SHERRY_G32", "Q2_0", "Q4_0"]


def test_a_wrong_group_of_weights_16_apart_is_located():
    latent = np.random.default_rng(15).normal(size=(ROWS, 512)).astype(np.float32)
    grid = quantize(latent, Granularity("per_group", 256), grid="stride16")
    weights = from_fours(expand(grid.codes, grid.scales), "stride16")
    data = stq1_0.BLOCKS.pack(grid.codes, grid.scales[:, ::2])
    found = compare(NAME, data, weights, STQ1_0)
    assert (found.weights, found.scales, found.first_wrong) == (weights.size, ROWS * 2, None)
    assert (found.wrong_weights, found.wrong_scales) == (0, 0)
    assert 0 < found.max_scale_error <= 2.0**-11
    data[3, 42 + 32] ^= 1 << 5  # block 1, sign of group 5
    found = compare(NAME, data, weights, STQ1_0)
    assert (found.wrong_weights, found.wrong_scales) == (3, 0)
    assert found.first_wrong == f"{NAME}, row 3, group 69 (weights 261, 277, 293, 309)"
    data[0, 40] ^= 1
    found = compare(NAME, data, weights, STQ1_0)
    assert (found.wrong_weights, found.wrong_scales) == (3, 1)
    assert found.first_wrong == f"{NAME}, row 0, group 0 (weights 0, 16, 32, 48)"


def test_a_scale_that_the_blocks_of_a_type_have_and_the_trained_weights_have_not(other_types):
    """Half of a TQ2_0 block was trained with another alpha: the block's one scale cannot be right."""
    tensor_type, weights, data = other_types("TQ2_0")
    weights[1, :128] *= np.float32(0.5)
    found = compare(NAME, data, weights, tensor_type)
    assert (found.wrong_weights, found.wrong_scales) == (0, 1)
    assert found.first_wrong == f"{NAME}, row 1, group 0 (weights 0..3)"


def test_sums_keep_the_first_and_the_worst():
    a = WeightCheck(1, 128, 0, 1, 0, 1e-4, None)
    b = WeightCheck(1, 256, 3, 2, 0, 3e-4, "b")
    c = WeightCheck(1, 256, 1, 2, 1, 2e-4, "c")
    assert a + b + c == WeightCheck(3, 640, 4, 5, 1, 3e-4, "b")
