"""STQ1_0, the public type (llama.cpp PR 22836): 256 weights in 42 bytes, 1.3125 bits per weight.

qs[32]    byte j: low nibble = index of group 2 * j, high nibble = index of group 2 * j + 1
sign[8]   bit g % 8 of byte g // 8 = sign of group g
d         IEEE fp16 scale, little-endian, finite and >= 0
"""

from __future__ import annotations

from typing import Final

from sherry_gguf.formats.code_blocks import CodeBlocks
from sherry_gguf.formats.tensor_type import TensorType

BLOCKS: Final = CodeBlocks("STQ1_0", 256, "stride16", low=slice(0, None, 2), high=slice(1, None, 2))

STQ1_0: Final = TensorType(
    name="STQ1_0",
    type_id=43,  # that of the type's later revisions
    block=BLOCKS.block,
    block_bytes=BLOCKS.block_bytes,
    encode=BLOCKS.encode,
    decode=BLOCKS.decode,
    codes=BLOCKS,
    file_type=513,  # LLAMA_FTYPE_MOSTLY_STQ1_0
    seen={42: 41, 43: 42, 253: None},  # the PR's first revisions, its later ones, and a fork
)
