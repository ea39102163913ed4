"""A trained Sherry checkpoint -> a GGUF file: plan, settle types, write, verify."""

from __future__ import annotations

from sherry_gguf.checkpoint import Source
from sherry_gguf.convert.pipeline import convert
from sherry_gguf.convert.summary import Conversion
from sherry_gguf.convert.type_choice import TypeChoice

__all__ = ["Conversion", "Source", "TypeChoice", "convert"]
