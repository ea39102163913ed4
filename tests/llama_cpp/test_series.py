"""The patch set this project ships, and the pin it is made for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.cache import locked
from sherry_gguf.llama_cpp.patching import git_environment
from sherry_gguf.llama_cpp.upstream import PatchSet

# Lines that a patch may add to upstream's files: what is more belongs into files of our own. A new type or backend adds
# its lines here, where they are seen.
HUNK_LINES = {
    "0001-ggml-type": 107,
    "0002-ggml-cpu": 54,
    "0003-llama-ftype": 41,
    "0004-gguf-py": 12,
    "0005-tests": 20,
    "0006-tools": 1,
    "0007-gpu-backends": 9,
    "0008-log": 10,
    "0009-vulkan": 164,
    "0010-cuda": 139,
    "0011-find-backends": 7,
    "0012-t5": 5,
    "0013-q8-0-x86": 31,
    "0014-barrier": 6,
    "0015-amx-config": 4,
}


@pytest.fixture(scope="module")
def shipped() -> PatchSet:
    return PatchSet.load()


def header(patch: Path) -> dict[str, str]:
    """The DEP-3 fields before the diff."""
    text = re.split(r"^(?:diff --git |--- )", patch.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^([A-Z][A-Za-z-]+): *(\S.*)$", text, re.MULTILINE))


def test_every_patch_is_in_the_series_once(shipped: PatchSet) -> None:
    listed = [patch.name for patch in shipped.series]
    assert sorted(listed) == sorted(path.name for path in (shipped.root / "patches").iterdir())
    assert listed == sorted(set(listed)), "applied in the order of their numbers"


def test_every_patch_says_why_it_exists(shipped: PatchSet) -> None:
    for patch in shipped.series:
        fields = header(patch)
        assert {"Description", "Subject"} & set(fields), patch
        assert {"Author", "From", "Origin"} & set(fields), patch
        assert "Forwarded" in fields, patch


def test_hunks_stay_small(shipped: PatchSet) -> None:
    added = {
        patch.stem: len(re.findall(r"^\+(?!\+\+ b/).*$", patch.read_text(encoding="utf-8"), re.MULTILINE))
        for patch in shipped.series
    }
    assert added.keys() == HUNK_LINES.keys()
    assert {name: n for name, n in added.items() if not 0 < n <= HUNK_LINES[name]} == {}


@pytest.mark.runtime
def test_the_series_applies_to_the_pristine_pin_exactly(shipped: PatchSet, tmp_path: Path) -> None:
    with locked() as cache:
        archive = fetch.fetch(cache, shipped.pin)
    tree = tmp_path / "tree"
    fetch.unpack(archive, shipped.pin.subdir, tree)
    for name, _ in shipped.files():
        assert not (tree / name).exists(), f"{name} is upstream's"
    for patch in shipped.series:
        done = subprocess.run(
            ["git", "apply", "--verbose", str(patch)],
            cwd=tree,
            env=git_environment(tree),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not re.search("offset|fuzz|Skipped", done.stderr), f"{patch.name}: {done.stderr}"
        touched = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.MULTILINE)
        assert re.findall(r"^Applied patch (\S+) cleanly", done.stderr, re.MULTILINE) == touched
