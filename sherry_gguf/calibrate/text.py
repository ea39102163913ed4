"""The calibration text in tokens of the model's own tokenizer, cut into windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.tokens import tokenize
from sherry_gguf.errors import SherryError

LENGTH: Final = 512  # tokens of a window


@dataclass(frozen=True)
class Windows:
    """tokens: int64[windows, length], each beginning with BOS where the model's texts do; sha256: of the text."""

    tokens: torch.Tensor
    sha256: str


def read_windows(path: Path, checkpoint: Checkpoint, wanted: int, seed: int) -> Windows:
    """As many windows of a text as make up ``wanted`` tokens, or all that there are. None overlaps another.

    Which of them, ``seed`` decides. Raises SherryError for a file that is no text, or less than one window.
    """
    try:
        stored = path.read_bytes()
        text = tokenize(checkpoint, stored.decode("utf-8"))
    except OSError as error:
        raise SherryError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SherryError(f"{path}: is no UTF-8 text, {error.reason} at byte {error.start}") from error
    length = min(LENGTH, int(checkpoint.config.get("max_position_embeddings") or LENGTH))
    tokens, own = torch.from_numpy(text.tokens).to(torch.int64), length
    if text.bos is not None:
        tokens, own = tokens[1:], length - 1
    count = len(tokens) // own
    if count == 0:
        raise SherryError(
            f"{path}: its {len(tokens):,} tokens are less than one window of {own}; calibration wants some "
            f"ten thousand, of texts as the model will read and write"
        )
    windows = tokens[: count * own].view(count, own)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    windows = windows[order[: max(1, wanted // length)].sort().values]
    if text.bos is not None:
        windows = torch.cat([torch.full((len(windows), 1), text.bos), windows], dim=1)
    return Windows(windows, hashlib.sha256(stored).hexdigest())
