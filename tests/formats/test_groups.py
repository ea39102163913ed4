"""The group code against the figures of its definition, written out; which weights make a group."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.formats.groups import CODES, GRIDS, PATTERNS, PERIOD, from_fours, place, to_fours


def packed(code: int) -> int:
    """A pattern as 2-bit fields w + 1, weight 0 in the low bits."""
    return sum((int(w) + 1) << 2 * p for p, w in enumerate(PATTERNS[code]))


def test_patterns_are_those_of_the_definition():
    assert [packed(i) for i in (0, 1, 4, 8, 12)] == [0xA9, 0x89, 0xA6, 0x9A, 0x6A]


def test_the_sign_negates_the_group():
    assert np.array_equal(PATTERNS[16:], -PATTERNS[:16])
    assert all(packed(code | 16) == 0xAA - packed(code) for code in range(16))


def test_all_patterns_differ_and_have_one_zero():
    assert len({packed(code) for code in range(CODES)}) == 32
    assert ((PATTERNS == 0).sum(axis=1) == 1).all()


def test_the_grids():
    assert GRIDS == ("consecutive", "stride16")
    assert PERIOD == {"consecutive": 4, "stride16": 64}


def test_the_weights_of_every_group_stand_side_by_side():
    weights = np.arange(3 * 2 * 192, dtype=np.int32).reshape(3, 2, 192)
    fours = to_fours(weights, "stride16")
    for row in range(3):
        for g in range(48):
            expected = [weights[row, 1, g // 16 * 64 + g % 16 + 16 * p] for p in range(4)]
            assert fours[row, 1, 4 * g : 4 * g + 4].tolist() == expected
    assert np.array_equal(to_fours(weights, "consecutive"), weights)


@pytest.mark.parametrize("grid", GRIDS)
def test_there_and_back(grid):
    weights = np.random.default_rng(0).standard_normal((7, 320)).astype(np.float32)
    assert np.array_equal(from_fours(to_fours(weights, grid), grid), weights)
    assert np.array_equal(to_fours(from_fours(weights, grid), grid), weights)


def test_places():
    assert place(64 + 3, 256) == "row 1, group 3 (weights 12..15)"
    assert place(64 + 3, 256, "stride16") == "row 1, group 3 (weights 3, 19, 35, 51)"
    assert place(63, 256, "stride16") == "row 0, group 63 (weights 207, 223, 239, 255)"
