"""A PEFT LoRA -> a GGUF adapter for llama.cpp's --lora, made sparse and ternary as ComPEFT does (arXiv 2311.13171).

compressed  one tensor -> its largest weights, all of one magnitude
choice      alpha, chosen by the perplexity of base and adapter on a text
lora        a directory of PEFT's: what is in it, and a copy with other weights
stored      upstream's converter, and the types that hold its tensors exactly
pipeline    the whole way
"""

from sherry_gguf.adapter.pipeline import ALPHAS, Adapter, make_adapter

__all__ = ["ALPHAS", "Adapter", "make_adapter"]
