"""A trained Sherry checkpoint -> a GGUF file: plan, write, verify."""

from __future__ import annotations

from sherry_gguf.convert.pipeline import convert
from sherry_gguf.convert.report import Report
from sherry_gguf.convert.types import TypeChoice

__all__ = ["Report", "TypeChoice", "convert"]
