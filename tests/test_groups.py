"""Which weights make a group, and how a message names them."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.groups import GROUPS, RUN, from_fours, place, to_fours


def test_the_kinds():
    assert GROUPS == ("consecutive", "stride16")
    assert RUN == {"consecutive": 4, "stride16": 64}


def test_the_weights_of_every_group_stand_side_by_side():
    weights = np.arange(3 * 2 * 192, dtype=np.int32).reshape(3, 2, 192)
    fours = to_fours(weights, "stride16")
    for row in range(3):
        for g in range(48):
            expected = [weights[row, 1, g // 16 * 64 + g % 16 + 16 * p] for p in range(4)]
            assert fours[row, 1, 4 * g : 4 * g + 4].tolist() == expected
    assert np.array_equal(to_fours(weights, "consecutive"), weights)


@pytest.mark.parametrize("groups", GROUPS)
def test_there_and_back(groups):
    weights = np.random.default_rng(0).standard_normal((7, 320)).astype(np.float32)
    assert np.array_equal(from_fours(to_fours(weights, groups), groups), weights)
    assert np.array_equal(to_fours(from_fours(weights, groups), groups), weights)


def test_places():
    assert place(64 + 3, 256) == "row 1, group 3 (weights 12..15)"
    assert place(64 + 3, 256, "stride16") == "row 1, group 3 (weights 3, 19, 35, 51)"
    assert place(63, 256, "stride16") == "row 0, group 63 (weights 207, 223, 239, 255)"
