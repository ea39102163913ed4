"""Putting the patch set into a llama.cpp tree: new files first, then the series, hunk by hunk.

``git apply`` does the work. It has no fuzz: the context of a hunk must match exactly, only its line number
may be off. Inside another repository it silently skips every file, so it is kept from looking for one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.llama_cpp.upstream import PatchSet


def apply(patches: PatchSet, tree: Path, origin: str, strict: bool) -> list[str]:
    """Patch the tree in place; return git's lines about hunks that were found at an offset.

    origin names the tree in errors. strict refuses offsets, for the tree the series was made from.
    Raises SherryError naming the patch and the file:line of a hunk that fails; the tree is spoilt then.
    """
    if shutil.which("git") is None:
        raise SherryError("git is needed to apply the patch: install git (Debian: `apt install git`)")
    if _is_patched(patches, tree):
        raise SherryError(f"{origin} has the patch already: give a tree without it, or build that one with cmake")
    for name, file in patches.files():
        target = tree / name
        if target.exists():
            raise SherryError(f"{origin} has a file of its own where the patch adds one: {name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    offsets = []
    for patch in patches.series:
        offsets += [f"{patch.name}: {line}" for line in _apply_one(patches, patch, tree, origin)]
    if strict and offsets:
        raise SherryError(f"the series is not made for {origin}: {offsets[0]}")
    return offsets


def git_environment(tree: Path) -> dict[str, str]:
    """An environment in which git takes ``tree`` for what it is: no repository around it, no user's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }


def _git_apply(patch: Path, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "apply", "--verbose", "--whitespace=nowarn", *options, str(patch.resolve())]
    return subprocess.run(command, cwd=tree, env=git_environment(tree), capture_output=True, text=True)


def _is_patched(patches: PatchSet, tree: Path) -> bool:
    """True if the first patch can be taken out of the tree."""
    return _git_apply(patches.series[0], tree, "--reverse", "--check").returncode == 0


def _apply_one(patches: PatchSet, patch: Path, tree: Path, origin: str) -> list[str]:
    git = _git_apply(patch, tree)
    if git.returncode != 0:
        raise _explain(patches, patch, git.stderr, origin)
    touched = set(re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.MULTILINE))
    applied = set(re.findall(r"^Applied patch (.+) cleanly\.$", git.stderr, re.MULTILINE))
    if touched != applied:
        missed = ", ".join(sorted(touched ^ applied))
        raise SherryError(f"git apply left out a part of {patch.name}: {missed}")
    return re.findall(r"^Hunk #.*offset.*$", git.stderr, re.MULTILINE)


def _explain(patches: PatchSet, patch: Path, stderr: str, origin: str) -> SherryError:
    """One line for a patch that did not apply."""
    if hunk := re.search(r"^error: patch failed: (.+:\d+)$", stderr, re.MULTILINE):
        what = f"the hunk at {hunk[1]} does not fit"
    else:
        lines = [line.removeprefix("error: ") for line in stderr.splitlines() if re.match("error:|fatal:", line)]
        what = lines[0] if lines else "git says nothing about it"
    return SherryError(
        f"{patch.name} does not apply to {origin}: {what}; the series is made for the llama.cpp of {patches.pin}: "
        f"fit the hunk in {patch} to your tree, or take that one",
        Way.BUILD_PIN,
    )
