"""Fetching the pinned sdist through pip, and unpacking llama.cpp out of it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.llama_cpp.cache import PARTIAL, say
from sherry_gguf.llama_cpp.upstream import Pin


def archive_path(cache: Path, pin: Pin) -> Path:
    """Where the cache keeps the pin's sdist. The name has its hash: what lies there was checked."""
    return cache / "downloads" / f"{pin.sdist}-{pin.version}-{pin.sha256[:16]}.tar.gz"


def fetch(cache: Path, pin: Pin) -> Path:
    """The pin's sdist, downloaded with pip where the cache does not have it. Needs the cache's lock.

    Raises SherryError without pip, without network, or when the file is not the pinned one.
    """
    archive = archive_path(cache, pin)
    if archive.is_file():
        return archive
    if importlib.util.find_spec("pip") is None:
        raise SherryError(f"{sys.executable} has no pip to fetch {pin} with: install pip there", Way.GIVE_SDIST)
    say(f"fetching {pin} with pip (75 MB)")
    where = cache / f"{PARTIAL}download"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    # pip asks an sdist's build backend for its metadata, that is, runs its code: the hash is checked before that
    requirements = where / "requirements.txt"
    requirements.write_text(f"{pin.sdist}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", pin.sdist, "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    options += ["--require-hashes", "-r", str(requirements), "-d", str(where / "sdist")]
    command = [sys.executable, "-m", "pip", "download", *options]
    try:
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if wrong := re.search(r"^\s*Got\s+([0-9a-f]{64})$", pip.stderr, re.MULTILINE):
            raise _not_pinned("the sdist that pip found", wrong[1], pin)
        if pip.returncode != 0:
            raise SherryError(f"pip could not fetch {pin} ({_reason(pip.stderr)}): check the network", Way.GIVE_SDIST)
        [found] = (where / "sdist").iterdir()
        return add(cache, pin, found)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def add(cache: Path, pin: Pin, file: Path) -> Path:
    """Check an sdist and put a copy of it into the cache. Raises SherryError if it is not the pinned file."""
    try:
        found = sha256_of(file)
    except OSError as error:
        raise SherryError(f"cannot read {file}: {error.strerror}") from None
    if found != pin.sha256:
        raise _not_pinned(file.name, found, pin)
    archive = archive_path(cache, pin)
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(PARTIAL + archive.name)
    shutil.copyfile(file, partial)
    return partial.replace(archive)


def unpack(archive: Path, subdir: str, to: Path) -> None:
    """Write the files of directory ``subdir`` of an sdist under ``to``, with their executable bits.

    Members elsewhere are passed over. Raises SherryError on a link, a device or a path that leads out
    of the directory (the tree of the pin has none), and on an archive without that directory.
    """
    count = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]  # without the sdist's own top directory
            inner = PurePosixPath(*parts)
            if not inner.is_relative_to(subdir) or member.isdir():
                continue
            name = inner.relative_to(subdir)
            if name.parts[:1] == (".git",):  # of the submodule it was: git would look for its repository
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or ".." in parts:
                raise SherryError(f"{archive} has a member that is no plain file of its tree: {member.name}")
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, open(path, "wb") as out:
                shutil.copyfileobj(content, out)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            count += 1
    if not count:
        raise SherryError(f"{archive} has no directory {subdir}")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with open(file, "rb") as data:
        while chunk := data.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _not_pinned(what: str, found: str, pin: Pin) -> SherryError:
    return SherryError(
        f"{what} has sha256 {found}, but the pin {pin} has {pin.sha256}: this is not the pinned file, it was "
        "not kept; get it from an index that serves the original"
    )


def _reason(stderr: str) -> str:
    """What pip's output says in a few words: no connection, or its last ERROR, or its last line."""
    if re.search(r"connection broken|connection error|NewConnectionError|ConnectTimeout|MaxRetryError", stderr):
        return "no connection to the package index"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]
