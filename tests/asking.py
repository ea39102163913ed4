"""A question to a model, as docs/hosts.md and README.md ask it with llama-cpp-python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "My fellow citizens,"
TOKENS = 16


def ask(bindings: Path, library: Path, model: Path, folder: Path, page: str = "docs/hosts.md") -> str:
    """What the example of the page prints, in a folder that has the model and nothing else."""
    (example,) = re.findall(r"^```py\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert PROMPT in example
    assert f"max_tokens={TOKENS}" in example
    (folder / "model-SHERRY.gguf").symlink_to(model)
    environment = {**os.environ, "PYTHONPATH": str(bindings), "LLAMA_CPP_LIB_PATH": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
