"""Whether llama.cpp itself loads a written file: the last word on it, where the runtime is built."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError, Way

_REASON = re.compile(r"error loading model: (.+)")


def load(path: Path) -> bool:
    """Let llama.cpp load all of a file but the weights, so that it looks up every tensor in the shape that it needs.

    Nothing is built for this: False if there is no runtime to ask. Raises SherryError with llama.cpp's own words if it
    does not load the file.
    """
    try:
        program = llama_cpp.find_build().program("sherry-logits")
        done = subprocess.run(
            [program, "-m", path, "--check"],
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
