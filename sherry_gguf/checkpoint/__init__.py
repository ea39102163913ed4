"""What a directory holds: a trained model on disk.

regular      what may be read at all: regular files
json_file    of these, JSON
stores       where tensors come from: safetensors, or a torch state dict
packed       BitNet's packed matrices, seen as floats
wrappers     names of tensors as wrappers around a model make them
declared     what config.json and its like say of the training
checkpoint   both together
remote_code  the Python files in it, which are not executed
source       a checkpoint and what its user says of it
"""

from __future__ import annotations

from sherry_gguf.checkpoint.checkpoint import Checkpoint
from sherry_gguf.checkpoint.source import Source

__all__ = ["Checkpoint", "Source"]
