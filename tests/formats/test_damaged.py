"""What no block of one plane of codes may be: a scale that fp16 does not have, a damaged one, half a block."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0

TYPES = [SHERRY, SHERRY_G32, STQ1_0]
# the first group of the second block
SECOND = {SHERRY: "32 (weights 128..131)", SHERRY_G32: "8 (weights 32..35)", STQ1_0: "64 (weights 256, 272, 288, 304)"}


@pytest.fixture(params=TYPES, ids=lambda of: of.name)
def of(request):
    return request.param


@pytest.mark.parametrize("scale", [np.nan, np.inf, 65520.0, 2.9e-8, -1.0])
def test_a_scale_outside_fp16_is_refused(of, scale):
    scales = np.ones((3, 2), dtype=np.float32)
    scales[2, 1] = scale
    with pytest.raises(SherryError) as caught:
        of.codes.pack(np.zeros((3, 2 * of.codes.groups), dtype=np.uint8), scales)
    assert f"row 2, group {SECOND[of]}" in str(caught.value)


@pytest.mark.parametrize("d", [0x7E00, 0x7C00, 0xFC00, 0xBC00, 0x8000])
def test_a_damaged_scale_is_refused_on_reading(of, d):
    packed = of.codes.pack(np.zeros((2, 2 * of.codes.groups), dtype=np.uint8), np.ones((2, 2), dtype=np.float32))
    packed[1, -2:] = d & 0xFF, d >> 8
    for read in (of.codes.unpack, of.dequantize):
        with pytest.raises(SherryError, match="block 1 of row 1"):
            read(packed)


def test_truncated_rows_are_refused(of):
    size = 2 * of.block_bytes + 1
    with pytest.raises(SherryError, match=f"{size} bytes are no multiple of a {of.name} block's {of.block_bytes}"):
        of.codes.unpack(np.zeros((1, size), dtype=np.uint8))
