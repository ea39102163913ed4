"""Around upstream's converter: what it needs, what it must not replace, and one line for whatever it raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sherry_gguf.checkpoint import Source
from sherry_gguf.checkpoint.remote_code import remote_code
from sherry_gguf.errors import SherryError, Way, says_no_memory


def require_tokenizer(directory: Path) -> None:
    """SherryError where nothing is named like a tokenizer's file: upstream's converter tells of what it tried."""
    if not any(re.search(r"tok|vocab|\.model$", path.name, re.IGNORECASE) for path in directory.iterdir()):
        raise SherryError(f"{directory}: has no tokenizer", Way.CONFIG_DIRECTORY)


def inputs_of(source: Source, metadata: Path | None) -> list[Path]:
    """Files that no output may replace: of the folders all but GGUF files, as an older output is often among them."""
    named = [path for path in (source.model, source.config_dir, metadata) if path is not None]
    inside = [path for folder in named if folder.is_dir() for path in folder.iterdir() if path.suffix != ".gguf"]
    return [*named, *inside]


@contextmanager
def one_line_errors(source: Source) -> Iterator[None]:
    """Around everything of upstream's converter, which executes code of a model, and raises whatever comes up for a
    checkpoint that it cannot read: do not let it, and make that one line."""
    model = source.model
    try:
        with remote_code(source.trust_remote_code):
            yield
    except SherryError:
        raise
    except OSError as error:
        raise SherryError(f"{error.filename or model}: {error.strerror or error}") from error
    except Exception as error:
        if says_no_memory(error):
            raise
        said = " ".join(str(error).split()) or "no message"
        raise SherryError(
            f"{model}: llama.cpp's converter stopped with {type(error).__name__}: {said}", Way.WHERE
        ) from error
