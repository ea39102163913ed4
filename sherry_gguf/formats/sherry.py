"""SHERRY: 128 neighbours in 22 bytes, 1.375 bits per weight. The type of the published trainer's default.

qs[16]    byte j: low nibble = index of group j, high nibble = index of group j + 16
signs[4]  bit g % 8 of byte g // 8 = sign of group g
d         IEEE fp16 scale, little-endian, finite and >= 0
"""

from __future__ import annotations

from typing import Final

from sherry_gguf.formats.code_blocks import CodeBlocks
from sherry_gguf.formats.tensor_type import TensorType

BLOCKS: Final = CodeBlocks("SHERRY", 128, "consecutive", low=slice(0, 16), high=slice(16, 32))

SHERRY: Final = TensorType(
    name="SHERRY",
    type_id=512,  # a private id, far above those of upstream and the known forks
    block=BLOCKS.block,
    block_bytes=BLOCKS.block_bytes,
    encode=BLOCKS.encode,
    decode=BLOCKS.decode,
    codes=BLOCKS,
    file_type=512,  # LLAMA_FTYPE_MOSTLY_SHERRY
    any_private_id=True,
    format_version=1,
)
