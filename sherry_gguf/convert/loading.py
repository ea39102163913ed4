"""Whether llama.cpp itself loads a written file: the last word on it, where the runtime is built."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files import system

_REASON = re.compile(r"error loading model: (.+)")


def load(files: Sequence[Path], names: Sequence[str]) -> bool:
    """Let llama.cpp load all of a model but the weights, so that it looks up every tensor in the shape that it needs.

    files: the model's one file or its parts; names: what they will be called, as llama.cpp finds parts by their names.

    Nothing is built for this: False if there is no runtime to ask. Raises SherryError with llama.cpp's own words if it
    does not load the file.
    """
    try:
        program = llama_cpp.find_build().program("sherry-logits")
        with _under(names, files) as first:
            done = subprocess.run(
                [program, "-m", first, "--check"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # the words before a stack are what matters
            )
    except (SherryError, OSError):
        return False
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reasons = [found[1] for line in lines if (found := _REASON.search(line))]
        said = (reasons or lines or [f"it ended with status {done.returncode}"])[0]
        raise SherryError(
            f"llama.cpp does not load the file that was made: {said}; "
            f"see whether config.json and the tokenizer are those of the weights",
            Way.UNVERIFIED,
        )
    return True


@contextmanager
def _under(names: Sequence[str], files: Sequence[Path]) -> Iterator[Path]:
    """The first of the files; those of a model in parts under these names, in a folder of links."""
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory(prefix="sherry-convert-") as folder:
        for name, file in zip(names, files, strict=True):
            system.name_also(file, Path(folder, name))
        yield Path(folder, names[0])
