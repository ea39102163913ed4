"""What can be done without a network once the sdist of the pin is at hand, unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.llama_cpp import cache, fetch
from sherry_gguf.llama_cpp.upstream import PatchSet

LINES = """
import sys
from pathlib import Path
from sherry_gguf.llama_cpp.builds import remember
remember(Path(sys.argv[1]), ())
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pin's sdist, unpacked as tar does it."""
    patches = PatchSet.load()
    with cache.locked() as place:
        archive = fetch.fetch(place, patches.pin)
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(archive, folder)
    (top,) = folder.iterdir()
    return top / patches.pin.subdir


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache, in which neither pip nor the Hub's library reach anything."""
    return {
        **os.environ,
        "SHERRY_GGUF_CACHE": str(tmp_path / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "0",
        "HF_HUB_OFFLINE": "1",
    }


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_remembered_source_converts(
    unpacked: Path, nowhere: dict[str, str], tiny_checkpoint: Path, sherry_gguf_file: Path, tmp_path: Path
) -> None:
    line = ("-m", "sherry_gguf", "convert", tiny_checkpoint, "--outfile", tmp_path / "x.gguf", "--quiet")
    refused = run(nowhere, *line)
    assert refused.returncode == 1
    assert "pip could not fetch" in refused.stderr
    assert run(nowhere, "-c", LINES, unpacked).returncode == 0
    done = run(nowhere, *line)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.gguf").read_bytes() == sherry_gguf_file.read_bytes()
    tree = run(nowhere, "-m", "sherry_gguf", "which", "--source").stdout.strip()
    of_pin = llama_cpp.source()
    assert (Path(tree) / "ggml/src/ggml-sherry.c").read_bytes() == (of_pin / "ggml/src/ggml-sherry.c").read_bytes()
