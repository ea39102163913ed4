"""The patched tree: the pin's, or a copy of a checkout of the user's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import fetch, patching
from sherry_gguf.llama_cpp.cache import PARTIAL, cache_dir, key, locked, new_dir, say, used
from sherry_gguf.llama_cpp.upstream import PatchSet


def source(source: Path | None = None, *, patches: PatchSet | None = None) -> Path:
    """The patched llama.cpp tree, made in the cache on first use (no build).

    source: a llama.cpp checkout to copy, in the state it is in now; default the pinned sdist, fetched with
    pip (75 MB). The directory never changes afterwards: another state of checkout or patch is another one.
    Raises SherryError if there is no network, the file is not the pinned one, or a hunk does not fit.
    """
    patches = patches or PatchSet.load()
    path = cache_dir() / tree_name(patches, source)
    if path.is_dir():
        return used(path)
    with locked() as cache:
        return ensure(cache, patches, source)


def tree_name(patches: PatchSet, checkout: Path | None) -> str:
    """The name of the patched tree in the cache: a hash of all that is in it."""
    origin = patches.pin.sha256 + patches.pin.subdir if checkout is None else _digest(checkout)
    return f"source-{key(origin, patches.digest())}"


def ensure(cache: Path, patches: PatchSet, checkout: Path | None) -> Path:
    """As source(), for a caller who holds the cache's lock."""
    path = cache / tree_name(patches, checkout)
    if path.is_dir():
        return used(path)
    archive = fetch.fetch(cache, patches.pin) if checkout is None else None
    with new_dir(path) as partial:
        if archive is not None:
            origin = str(patches.pin)
            fetch.unpack(archive, patches.pin.subdir, partial)
        else:
            assert checkout is not None
            origin = str(checkout)
            for name in _listing(checkout):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(checkout / name, partial / name)
            if tree_name(patches, checkout) != path.name:
                raise SherryError(f"{checkout} changed while it was copied: try again")
        for line in patching.apply(patches, partial, origin, strict=checkout is None):
            say(line)
    return path


def mirror(tree: Path, to: Path) -> None:
    """Make ``to`` equal to ``tree``. Files that are equal already keep their time, so ninja leaves them alone;
    all others get the present time, also when an older state comes back."""
    wanted = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    for path in [path for path in to.rglob("*") if path.is_file() and path.relative_to(to) not in wanted]:
        path.unlink()
    for name in wanted:
        old, new = to / name, tree / name
        if not old.is_file() or old.stat().st_mode != new.stat().st_mode or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(new, old)


def _listing(checkout: Path) -> list[str]:
    """The files of a checkout, sorted: what git tracks or would add; without git all but build* directories.

    A tree in an unpacked sdist was a submodule: its ``.git`` is a file that names a repository which is not there.
    Raises SherryError if the directory is no llama.cpp.
    """
    if not (checkout / "ggml/include/ggml.h").is_file():
        raise SherryError(f"{checkout} is no llama.cpp checkout: it has no ggml/include/ggml.h")
    if _is_repository(checkout):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            git = subprocess.run(command, cwd=checkout, capture_output=True, check=True)
        except FileNotFoundError:
            raise SherryError(f"git is needed to read the checkout {checkout}: install git") from None
        except subprocess.CalledProcessError as error:
            raise SherryError(f"git cannot list {checkout}: {error.stderr.decode(errors='replace').strip()}") from None
        names = {os.fsdecode(name) for name in git.stdout.split(b"\0") if name}
    else:
        names = set()
        for top, dirs, files in os.walk(checkout):
            at_top = Path(top) == checkout
            dirs[:] = [d for d in dirs if not (at_top and (d.startswith("build") or d == ".cache"))]
            names |= {str((Path(top) / file).relative_to(checkout)) for file in files}
        names.discard(".git")
    return sorted(name for name in names if (checkout / name).is_file())


def _is_repository(checkout: Path) -> bool:
    """Whether git has something to say of a directory: a repository of its own, or one that its ``.git`` file names."""
    git = checkout / ".git"
    if not git.is_file():
        return git.exists()
    named = git.read_text(encoding="utf-8", errors="replace").removeprefix("gitdir:").strip()
    return (checkout / named).exists()


def _digest(checkout: Path) -> str:
    """A hash of the names, modes and contents of a checkout's files.

    The contents (170 MB) are read only if a size or time differs from those of the last call, which are noted.
    """
    names = _listing(checkout)
    stats = [(name, (checkout / name).stat()) for name in names]
    state = key(*(f"{name} {stat.st_mode} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))
    note = cache_dir() / f"checkout-{key(str(checkout.resolve()))}"
    with suppress(FileNotFoundError):
        noted, _, digest = note.read_text(encoding="utf-8").partition(" ")
        if noted == state:
            return digest
    contents = (hashlib.sha256((checkout / name).read_bytes()).hexdigest() for name in names)
    digest = key(*(f"{name} {stat.st_mode} {content}" for (name, stat), content in zip(stats, contents, strict=True)))
    partial = note.with_name(f"{PARTIAL}{note.name}-{os.getpid()}")
    with suppress(OSError):  # the note only saves time
        partial.write_text(f"{state} {digest}", encoding="utf-8")
        partial.replace(note)
    return digest
