"""The group code against the figures of the format's definition, written out."""

from __future__ import annotations

import numpy as np

from sherry_gguf import format as fmt


def packed(code: int) -> int:
    """A pattern as 2-bit fields w + 1, weight 0 in the low bits."""
    return sum((int(w) + 1) << 2 * p for p, w in enumerate(fmt.PATTERNS[code]))


def test_patterns_are_those_of_the_definition():
    assert [packed(i) for i in (0, 1, 4, 8, 12)] == [0xA9, 0x89, 0xA6, 0x9A, 0x6A]


def test_the_sign_negates_the_group():
    assert np.array_equal(fmt.PATTERNS[16:], -fmt.PATTERNS[:16])
    assert all(packed(code | 16) == 0xAA - packed(code) for code in range(16))


def test_all_patterns_differ_and_have_one_zero():
    assert len({packed(code) for code in range(fmt.CODES)}) == 32
    assert ((fmt.PATTERNS == 0).sum(axis=1) == 1).all()


def test_sizes():
    assert fmt.BLOCK_BYTES == 22
    assert fmt.BLOCK_BYTES * 8 / fmt.BLOCK == 1.375
