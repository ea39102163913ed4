"""Builds that another machine made: an archive of programs and libraries, and how it comes into the cache.

    build.json    the targets, the patched tree that they are of, the system and the C library that they need
    bin/          programs, libraries, and a library of kernels for each kind of processor
    source/       what Python uses of the tree: gguf-py/, conversion/ with its templates, the converters

Unpacked, it lies in the cache as ``prebuilt-SHA256``. Libraries have several names, which are links to one file: with
copies a process could load one twice. An archive comes from elsewhere, so members that are not as here are refused.
"""

from __future__ import annotations

import io
import json
import lzma
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.llama_cpp.cache import FULL, new_dir
from sherry_gguf.llama_cpp.fetch import sha256_of

STAMP = "build.json"
_NAME = re.compile(r"[\w.+-]+")  # of a program or library
PYTHON_PARTS = ("gguf-py/gguf", "conversion", "models/templates", "*.py")


def directory(cache: Path, sha256: str) -> Path:
    """Where the cache keeps an archive's content."""
    return cache / f"prebuilt-{sha256[:16]}"


def pack(bin_dir: Path, source: Path, targets: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Write a build's archive, and return its stamp. The same files give the same bytes. out: a new .tar.xz file."""
    files = {f"bin/{path.name}": path for path in bin_dir.iterdir() if not path.is_dir()}
    needs = {name: _newest(name, files.values()) for name in ("GLIBC", "GLIBCXX")}
    parts = [found for part in PYTHON_PARTS for found in source.glob(part)]
    inner = [path for part in parts for path in (part.rglob("*") if part.is_dir() else [part])]
    files |= {
        f"source/{path.relative_to(source).as_posix()}": path
        for path in inner
        if path.is_file() and "__pycache__" not in path.parts
    }
    stamp = {
        "targets": sorted(targets),
        "tree": source.name,
        "system": _system(),
        "needs": {name: version for name, version in needs.items() if version},
    }
    with tarfile.open(out, "w:xz") as tar:
        text = (json.dumps(stamp, indent=1) + "\n").encode()
        _add(tar, STAMP, io.BytesIO(text), len(text))
        for name, path in sorted(files.items()):
            if path.is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, path.readlink().name
                tar.addfile(link)
            else:
                with open(path, "rb") as content:
                    _add(tar, name, content, path.stat().st_size, 0o755 if name.startswith("bin/") else 0o644)
    return stamp


def unpack(cache: Path, archive: Path, sha256: str | None, tree_name: str) -> str:
    """Check an archive, put its content into the cache, and return its SHA-256. Needs the cache's lock.

    sha256: what it should be, default what stands in the file of that name with ``.sha256`` behind.
    tree_name: the patched tree that this release builds. Raises SherryError for a file that is another one, is of
    another release or system, has a member that it should not have, or whose programs do not start here.
    """
    try:
        found = sha256_of(archive)
    except OSError as error:
        raise SherryError(f"cannot read {archive}: {error.strerror}") from None
    wanted = (sha256 or _beside(archive)).lower()
    if found != wanted:
        raise SherryError(
            f"{archive} has sha256 {found}, not {wanted}: it is damaged or another file, and was not used"
        )
    path = directory(cache, found)
    if path.is_dir():
        _require_fit(path, archive, tree_name)
        return found
    with new_dir(path) as partial:
        try:
            with tarfile.open(archive, "r:xz") as tar:
                for member in tar:
                    _write(tar, member, partial, archive)
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:  # which is the cache's fault
                raise
            raise _no_build(archive, error) from None
        _require_fit(partial, archive, tree_name)
    return found


def _require_fit(folder: Path, archive: Path, tree_name: str) -> None:
    """Raise SherryError for an unpacked archive of another release or system, or whose programs do not start here."""
    try:
        stamp = _read_stamp(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_build(archive, error) from None
    if stamp["tree"] != tree_name:
        raise SherryError(f"{archive} was built from another llama.cpp or patch than this release's", Way.BUILD(""))
    if stamp["system"] != _system():
        raise SherryError(f"{archive} is for {stamp['system']}, and this is {_system()}", Way.BUILD(""))
    program = folder / "bin" / stamp["targets"][0]
    if said := _does_not_start(program):
        needs = " and ".join(f"{name} {version}" for name, version in stamp["needs"].items())
        raise SherryError(
            f"{archive}{needs and f' needs {needs}'}: its {program.name} does not start here ({said})", Way.BUILD("")
        )


def _read_stamp(folder: Path) -> dict[str, Any]:
    """As ``pack`` writes it. Raises OSError, ValueError, KeyError or TypeError for what is none."""
    stamp: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    targets, needs, _ = stamp["targets"], stamp["needs"], (stamp["tree"], stamp["system"])
    names = isinstance(targets, list) and targets and all(_NAME.fullmatch(name) for name in targets)
    if not names or not isinstance(needs, dict):
        raise ValueError(f"{STAMP} does not say what was built")
    return stamp


def _no_build(archive: Path, error: Exception) -> SherryError:
    return SherryError(f"{archive} is no archive of a build: {error}")


def _add(tar: tarfile.TarFile, name: str, content: Any, size: int, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    tar.addfile(member, content)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path, archive: Path) -> None:
    """A member where it belongs: a plain file, or a link to a name in its own directory."""
    name = PurePosixPath(member.name)
    known = name.parts[0] in ("bin", "source") if len(name.parts) > 1 else member.name == STAMP
    plain_link = member.issym() and _NAME.fullmatch(member.linkname) and member.linkname.strip(".")
    if ".." in name.parts or not known or not (member.isfile() or plain_link):
        raise SherryError(f"{archive} has a member that no build has: {member.name}")
    path = to / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    content = tar.extractfile(member)
    assert content is not None
    with content, open(path, "xb") as out:  # never through a link that came before
        shutil.copyfileobj(content, out)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _beside(archive: Path) -> str:
    """The checksum in the file beside an archive, as sha256sum writes it."""
    file = archive.with_name(f"{archive.name}.sha256")
    try:
        words = file.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        words = []
    if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
        raise SherryError(f"no checksum for {archive}: {file.name} is not beside it, or has none", Way.CHECKSUM)
    return words[0]


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _newest(name: str, files: Iterable[Path]) -> str:
    """The newest version of a library's symbols that any file asks for, like 2.34 for GLIBC; empty if none does."""
    pattern = re.compile(rf"\0{name}_([\d.]+)(?=\0)".encode())
    found = {version.decode() for path in files for version in pattern.findall(path.read_bytes())}
    return max(found, key=lambda version: [int(part) for part in version.split(".")], default="")


def _does_not_start(program: Path) -> str:
    """What the system says where a program does not start; empty if it does."""
    try:
        done = subprocess.run(
            [program, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        return error.strerror or str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
    return "" if done.returncode == 0 else lines[-1].strip()
