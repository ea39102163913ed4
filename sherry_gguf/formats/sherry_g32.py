"""SHERRY_G32: 32 neighbours in 7 bytes, 1.75 bits per weight. For a scale per 32 weights, and rows of no whole 128.

qs[4]   byte j: low nibble = index of group j, high nibble = index of group j + 4
signs   bit g = sign of group g
d       IEEE fp16 scale, little-endian, finite and >= 0

Four such blocks have what a SHERRY block has, but for their four scales.
"""

from __future__ import annotations

from typing import Final

from sherry_gguf.formats.code_blocks import CodeBlocks
from sherry_gguf.formats.tensor_type import TensorType

BLOCKS: Final = CodeBlocks("SHERRY_G32", 32, "consecutive", low=slice(0, 4), high=slice(4, 8))

SHERRY_G32: Final = TensorType(
    name="SHERRY_G32",
    type_id=520,  # SHERRY's neighbours 513 and 514 are types that live in memory only
    block=BLOCKS.block,
    block_bytes=BLOCKS.block_bytes,
    encode=BLOCKS.encode,
    decode=BLOCKS.decode,
    codes=BLOCKS,
    file_type=520,  # 513 is that of STQ1_0
    any_private_id=True,
    format_version=2,
)
