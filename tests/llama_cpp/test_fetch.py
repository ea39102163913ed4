from __future__ import annotations

import hashlib
import os
import stat
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from refusals import refused

from sherry_gguf.commands.ways_out import BUILD
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.upstream import PatchSet, Pin

BACKEND = """\
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    import os
    os.mkdir(os.path.join(directory, "tiny_cpp-1.0.dist-info"))
    with open(os.path.join(directory, "tiny_cpp-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: tiny-cpp\\nVersion: 1.0\\n")
    return "tiny_cpp-1.0.dist-info"
def build_wheel(directory, config_settings=None, metadata_directory=None): raise NotImplementedError
def build_sdist(directory, config_settings=None): raise NotImplementedError
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for the only index there is."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return path


def pinned(file: Path) -> Pin:
    return Pin("tiny-cpp", "1.0", hashlib.sha256(file.read_bytes()).hexdigest(), "vendor/llama.cpp")


def test_fetch_through_pip_keeps_the_checked_file(tiny: ModuleType, cache: Path, index: Path) -> None:
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    members = {"pyproject.toml": project, "backend.py": BACKEND, "PKG-INFO": "Name: tiny-cpp\nVersion: 1.0\n"}
    file = tiny.write_sdist(
        index / "tiny_cpp-1.0.tar.gz", {f"tiny_cpp-1.0/{name}": text for name, text in members.items()}
    )
    cache.mkdir()
    archive = fetch.fetch(cache, pinned(file))
    assert archive.read_bytes() == file.read_bytes()
    file.unlink()
    assert fetch.fetch(cache, pinned(archive)) == archive, "the second time it is not asked for"


def test_fetch_runs_nothing_of_another_file(tiny: ModuleType, cache: Path, index: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    members = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(ran)!r}, 'w').close()\n{BACKEND}",
        "PKG-INFO": "Name: tiny-cpp\nVersion: 1.0\n",
    }
    file = tiny.write_sdist(
        index / "tiny_cpp-1.0.tar.gz", {f"tiny_cpp-1.0/{name}": text for name, text in members.items()}
    )
    pin = pinned(file)
    cache.mkdir()
    with pytest.raises(SherryError, match=f"has sha256 {pin.sha256}, but the pin .* has {'0' * 64}: this is") as error:
        fetch.fetch(cache, replace(pin, sha256="0" * 64))
    assert "\n" not in str(error.value)
    assert not ran.exists()
    assert not list(cache.rglob("*.tar.gz"))
    fetch.fetch(cache, pin)
    assert ran.exists(), "pip does run the backend of the pinned file"


def test_fetch_refuses_another_file_and_keeps_nothing(cache: Path, sdist: Path, patches: PatchSet) -> None:
    other = replace(patches.pin, sha256="0" * 64)
    with pytest.raises(SherryError, match=f"tiny_cpp-1.0.tar.gz has sha256 {patches.pin.sha256}.*pin.*{'0' * 64}"):
        fetch.add(cache, other, sdist)
    assert not list(cache.rglob("*.tar.gz"))


def test_fetch_without_a_file_to_find_is_one_line(cache: Path, index: Path, patches: PatchSet) -> None:
    with pytest.raises(
        SherryError, match=r"could not fetch tiny-cpp 1.0 \(.*tiny-cpp==1.0.*\): check the network"
    ) as error:
        fetch.fetch(cache, patches.pin)
    assert "\n" not in str(error.value)
    assert "--sdist FILE" in error.value.worded(BUILD)
    assert not list(cache.glob("partial-*"))


def test_fetch_without_network(cache: Path, index: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SherryError, match=r"could not fetch tiny-cpp 1.0 \(no connection to the package index\)"):
        fetch.fetch(cache, patches.pin)


def test_fetch_without_pip_names_the_way_out(cache: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(f"{sys.executable} has no pip.*--sdist FILE", BUILD):
        fetch.fetch(cache, patches.pin)


def test_add_names_a_file_that_cannot_be_read(cache: Path, patches: PatchSet) -> None:
    with pytest.raises(SherryError, match=r"cannot read .*nowhere.tar.gz: No such file"):
        fetch.add(cache, patches.pin, cache / "nowhere.tar.gz")


def test_unpack_takes_the_subtree_with_modes_and_no_git(tiny: ModuleType, tmp_path: Path, sdist: Path) -> None:
    tree = tmp_path / "tree"
    fetch.unpack(sdist, "vendor/llama.cpp", tree)
    assert stat.S_IMODE((tree / "scripts/run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "src/tiny.c").stat().st_mode) == 0o644
    assert not (tree / "README").exists()
    assert not (tree / ".git").exists(), "git would look for the repository it points to"


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


TOP = "tiny-1.0/vendor/llama.cpp"


@pytest.mark.parametrize(
    ("name", "member"),
    [
        (f"{TOP}/../../../../out", "text"),
        (f"{TOP}/a/../../b", "text"),
        (f"{TOP}/link", link(f"{TOP}/link", tarfile.SYMTYPE)),
        (f"{TOP}/link", link(f"{TOP}/link", tarfile.LNKTYPE)),
        (f"{TOP}/pipe", link(f"{TOP}/pipe", tarfile.FIFOTYPE)),
    ],
)
def test_unpack_refuses_what_is_no_plain_file(
    tiny: ModuleType, tmp_path: Path, name: str, member: str | tarfile.TarInfo
) -> None:
    archive = tiny.write_sdist(tmp_path / "bad.tar.gz", {name: member})
    with pytest.raises(SherryError, match=r"bad.tar.gz has a member that is no plain file of its tree: tiny-1.0"):
        fetch.unpack(archive, "vendor/llama.cpp", tmp_path / "deep/down/in/tree")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


def test_unpack_needs_the_directory(tmp_path: Path, sdist: Path) -> None:
    with pytest.raises(SherryError, match="has no directory vendor/other"):
        fetch.unpack(sdist, "vendor/other", tmp_path / "tree")
