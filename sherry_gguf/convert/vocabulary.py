"""Whether upstream's converter takes a tokenizer. Asked before a training, that saves the hours of it."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path
from typing import Any

from sherry_gguf.checkpoint.remote_code import remote_code
from sherry_gguf.convert.model import UPSTREAM_LOG, upstream_class
from sherry_gguf.errors import SherryError, Way, naming


def require_vocabulary(directory: Path) -> None:
    """Raise SherryError if upstream's converter could not convert a model with the config.json and tokenizer there.

    Its weights are not read, and need not be there. Needs llama_cpp.use_pinned_gguf() first.
    """
    folder = Path(os.path.abspath(directory))
    with (
        remote_code(),
        naming("a model trained from this one could not be converted to GGUF"),
        upstream_class(folder, directory) as (base, hparams),
    ):
        try:
            _read_vocabulary(base, folder, hparams)
        except MemoryError:
            raise
        except Exception as error:  # upstream raises whatever comes up
            reason = f"{directory}: llama.cpp's converter does not take its tokenizer, {_said(error)}"
            raise SherryError(reason, Way.KNOWN_TOKENIZER) from error


def _read_vocabulary(base: Any, directory: Path, hparams: dict[str, Any]) -> None:
    """What upstream does with a tokenizer when it converts; nothing is written, or logged."""
    import gguf

    log = logging.getLogger(UPSTREAM_LOG)
    level = log.level
    log.setLevel(logging.CRITICAL)  # of a tokenizer that it does not know, it says so in a dozen lines
    try:
        instance = without_tensors(base)(
            directory, gguf.LlamaFileType.ALL_F32, directory / "vocabulary.gguf", hparams=hparams
        )
        instance.set_vocab()
    finally:
        log.setLevel(level)


def without_tensors(base: Any) -> Any:
    """Upstream's converter of an architecture, for models of which only the folder's other files count."""

    class Vocabulary(base):
        """Reads no weights."""

        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Any]:
            return {}

    return Vocabulary


def _said(error: Exception) -> str:
    """Its message; of an assertion without one, what was asserted."""
    if isinstance(error, SherryError):
        return error.saw
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {' '.join(str(error).split()) or line}"
