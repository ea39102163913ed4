"""The pin and the patch: what ``ggml-patch/`` says about the llama.cpp it is made for.

UPSTREAM           `key: value` lines: the sdist that carries llama.cpp, its version, sha256, and where in it
series             the names of the patches, one a line, in order
patches/*.patch    hunks into upstream's files
files/...          whole new files, laid where they belong in the tree
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.errors import SherryError

PACKAGE = Path(__file__).resolve().parents[1]
# inside an installed wheel, and beside the package in a clone
PATCH_DIRS = (PACKAGE / "_ggml_patch", PACKAGE.parent / "ggml-patch")


@dataclass(frozen=True)
class Pin:
    """The release of an sdist on the package index whose directory ``subdir`` is llama.cpp."""

    sdist: str
    version: str
    sha256: str
    subdir: str

    def __str__(self) -> str:
        return f"{self.sdist} {self.version}"


@dataclass(frozen=True)
class PatchSet:
    """One ``ggml-patch`` directory."""

    root: Path
    pin: Pin
    series: tuple[Path, ...]

    @classmethod
    def load(cls, root: Path | None = None) -> PatchSet:
        """Read a patch directory; without root, the one this package came with.

        Raises SherryError where a part of it is missing.
        """
        if root is None:
            root = next((path for path in PATCH_DIRS if path.is_dir()), None)
            if root is None:
                raise SherryError(f"ggml-patch is missing: neither {PATCH_DIRS[0]} nor {PATCH_DIRS[1]} exists")
        series = tuple(root / "patches" / name for name in _lines(root / "series"))
        if not series:
            raise SherryError(f"{root / 'series'} names no patch")
        for patch in series:
            if not patch.is_file():
                raise SherryError(f"{root / 'series'} names {patch.name}, and {patch} does not exist")
        return cls(root, _read_pin(root / "UPSTREAM"), series)

    def files(self) -> Iterator[tuple[str, Path]]:
        """The new files, sorted: (path in the llama.cpp tree, path here). Hidden files are no part of it."""
        top = self.root / "files"
        for path in sorted(top.rglob("*")):
            name = path.relative_to(top)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield name.as_posix(), path

    def digest(self) -> str:
        """A hash of everything that is put into the tree."""
        parts = [(f"patch {path.name}", path) for path in self.series]
        parts += [(f"file {name}", path) for name, path in self.files()]
        digest = hashlib.sha256()
        for label, path in parts:
            digest.update(f"{label}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()


def _lines(path: Path) -> list[str]:
    """The lines of a text file without comments and blank ones."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SherryError(f"{path} is missing") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _read_pin(path: Path) -> Pin:
    fields = dict(line.partition(":")[::2] for line in _lines(path))
    values = {key.strip(): value.strip() for key, value in fields.items()}
    try:
        return Pin(values["sdist"], values["version"], values["sha256"].lower(), values["subdir"].strip("/"))
    except KeyError as error:
        raise SherryError(f"{path} has no line {error.args[0]!r}") from None
