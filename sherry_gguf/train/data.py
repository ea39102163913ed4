"""Texts -> blocks of tokens, all of one length, each begun as the runtime begins a text. Memory-mapped by datasets."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from sherry_gguf.errors import SherryError, Way

# suffix -> a loader of the datasets library; a .txt file is one document, elsewhere a record with "text" is
_LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_DOCUMENTS_AT_A_TIME = 1000


def bos_of(tokenizer: Any) -> int | None:
    """The token that texts begin with, None for a tokenizer that puts none."""
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][0] == bos else None


def token_blocks(files: Sequence[Path], tokenizer: Any, length: int) -> datasets.Dataset:
    """A Dataset of ``input_ids`` int32[length] from .txt, .jsonl and .parquet files.

    Documents are joined, each with an EOS after it where the tokenizer has one, and cut: every block is BOS, where
    texts begin with it, and the next tokens. What is left of each thousand documents is dropped.
    Raises SherryError for a file that is missing or of another kind, for records without a text, and where all texts
    together are too short.
    """
    documents = datasets.concatenate_datasets([_read(path) for path in files])
    begin = [] if (bos := bos_of(tokenizer)) is None else [bos]
    end = [] if (eos := tokenizer.eos_token_id) is None else [eos]

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokens = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": _blocks(chain.from_iterable(ids + end for ids in tokens), begin, length)}

    blocks = documents.map(
        cut,
        batched=True,
        batch_size=_DOCUMENTS_AT_A_TIME,
        remove_columns=documents.column_names,
        features=datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))}),
        desc="Tokenizing",
    )
    if len(blocks) == 0:
        raise SherryError(f"{', '.join(map(str, files))}: less text than one block of {length} tokens", Way.CONTEXT)
    return blocks


def _blocks(tokens: Iterable[int], begin: list[int], length: int) -> list[list[int]]:
    flat = list(tokens)
    step = length - len(begin)
    return [begin + flat[start : start + step] for start in range(0, len(flat) - step + 1, step)]


def _read(path: Path) -> datasets.Dataset:
    if not path.is_file():
        raise SherryError(f"{path}: no such file")
    loader = _LOADERS.get(path.suffix)
    if loader is None:
        raise SherryError(f"{path}: {path.suffix or 'no suffix'} is none of {', '.join(_LOADERS)}")
    options = {"sample_by": "document"} if loader == "text" else {}
    try:
        # data_files is a pattern to the library, and the path of one file here
        with _without_bars():
            read = datasets.load_dataset(loader, data_files=glob.escape(str(path)), split="train", **options)
    except StopIteration:  # from a .jsonl of no bytes
        raise SherryError(f"{path}: holds no records") from None
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise SherryError(f"{path}: holds no records") from None
        cause = error.__cause__ or error
        raise SherryError(f"{path}: cannot be read, {' '.join(str(cause).split())}") from error
    if "text" not in read.column_names:
        raise SherryError(f'{path}: its records have no "text", only {", ".join(read.column_names)}')
    return _texts(read.select_columns(["text"]), path)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Tokenizing, which takes the time, has a bar; reading and casting need none of their own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _texts(read: datasets.Dataset, path: Path) -> datasets.Dataset:
    """The same records, each of them a string; SherryError where one is none."""
    found = read.features["text"]
    if getattr(found, "dtype", None) not in ("string", "large_string"):
        what = {"Json": "of several types", "List": "a list"}.get(
            type(found).__name__, getattr(found, "dtype", "a record")
        )
        raise SherryError(f'{path}: the "text" of its records is {what}, not a string')
    column = read.data.column("text")
    if column.null_count:
        raise SherryError(f'{path}: record {column.is_null().index(True).as_py() + 1} has no "text"')
    # files are joined, which takes columns of one type
    if found.dtype == "string":
        return read
    with _without_bars():
        return read.cast_column("text", datasets.Value("string"))
