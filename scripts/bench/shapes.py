"""The sizes of models that the benches make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """(rows, weights in a row) of each linear layer of a block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.ffn, self.hidden),
            "ffn_up": (self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }


SHAPES = {
    "0.7b": Shape(1536, 4096, 24, 12, 12, 128, 32000),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, 128256),
    "3b": Shape(3072, 8192, 28, 24, 8, 128, 128256),
    "8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151936),
    "hunyuan-1.8b": Shape(2048, 6144, 32, 16, 4, 128, 120818),
    "tiny": Shape(256, 512, 2, 4, 2, 64, 32000),
}
