"""Text in tokens of a checkpoint's own tokenizer, and what transformers raises, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sherry_gguf.checkpoint.checkpoint import Checkpoint
from sherry_gguf.errors import SherryError

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Text:
    """A text in tokens of the checkpoint's own tokenizer: int32[n], and the BOS that texts begin with, if any."""

    tokens: I32
    bos: int | None


def tokenize(checkpoint: Checkpoint, text: str) -> Text:
    """The text as the model saw texts in training, BOS included where it uses one.

    Raises SherryError where the checkpoint has no tokenizer that transformers can load. Code in it is not run.
    """
    with transformers_errors(checkpoint.directory, "no tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory, trust_remote_code=False)
        tokens = np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int32)
    bos = tokenizer.bos_token_id
    return Text(tokens, bos if bos is not None and len(tokens) and tokens[0] == bos else None)


@contextmanager
def transformers_errors(path: Path, what: str) -> Iterator[None]:
    """transformers raises whatever comes up for a checkpoint that is not as it expects: make that one line."""
    try:
        yield
    except (SherryError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        raise SherryError(f"{path}: {what}; transformers stopped with {type(error).__name__}: {said}") from error
