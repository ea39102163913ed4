"""A build goes into an archive, and comes out of it on a machine that has neither network, git nor compiler."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.cli import main
from sherry_gguf.llama_cpp import build, fetch, find_build, find_source, prebuilt, upstream
from sherry_gguf.llama_cpp.builds import LAST
from sherry_gguf.llama_cpp.upstream import PatchSet

Change = Callable[[list[tarfile.TarInfo], dict[str, bytes]], None]


@pytest.fixture(scope="module")
def packed(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PatchSet, Path]:
    """The tiny build's archive, its patch set, and the tree that it is of."""
    folder = tmp_path_factory.mktemp("packed")
    sdist = tiny.write_sdist(
        folder / "tiny_cpp-1.0.tar.gz", {f"tiny-1.0/vendor/llama.cpp/{name}": text for name, text in tiny.TREE.items()}
    )
    patches = tiny.write_patches(
        folder / "patch", sdist, {"0001-forty.patch": tiny.PATCH}, {"src/new.c": "int new_one;\n"}
    )
    with pytest.MonkeyPatch.context() as here:
        here.setenv("SHERRY_GGUF_CACHE", str(folder / "cache"))
        (folder / "cache").mkdir()
        fetch.add(folder / "cache", patches.pin, sdist)
        made = build(["hello", "second"], patches=patches)
        prebuilt.pack(made.bin_dir, made.source, made.targets, folder / "runtime.tar.xz")
    return folder / "runtime.tar.xz", patches, made.source


@pytest.fixture
def archive(packed: tuple[Path, PatchSet, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it with its checksum, and an empty cache, as on another machine."""
    monkeypatch.setattr(upstream, "PATCH_DIRS", (packed[1].root,))
    copy = Path(shutil.copy(packed[0], tmp_path))
    sign(copy)
    return copy


def sign(archive: Path) -> str:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{sha256}  {archive.name}\n")
    return sha256


def rewrite(archive: Path, change: Change) -> None:
    """Change an archive's members, and sign it again: it says of itself what it is."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        contents = {member.name: file.read() for member in members if (file := tar.extractfile(member))}
    change(members, contents)
    with tarfile.open(archive, "w:xz") as tar:
        for member in members:
            content = contents.get(member.name, b"") if member.isfile() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sign(archive)


def test_taken_without_a_compiler_or_git(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(tmp_path / "no programs"))
        assert main(["build", "--prebuilt", str(archive)]) == 0
        assert capsys.readouterr().out.startswith(f"2 programs in {find_build().bin_dir}")
        assert find_source() == find_build().source
    assert (find_source() / "gguf-py/gguf/__init__.py").read_text() == "HERE = 'the tree'\n"
    assert (find_source() / "conversion/__init__.py").is_file()
    done = subprocess.run([find_build().program("hello")], capture_output=True, text=True, check=True)
    assert done.stdout == "40\n"
    assert main(["build", "--prebuilt", str(archive)]) == 0  # once more, from the cache


def test_the_same_build_gives_the_same_bytes(
    archive: Path, packed: tuple[Path, PatchSet, Path], tmp_path: Path
) -> None:
    assert main(["build", "--prebuilt", str(archive)]) == 0
    made = find_build()
    stamp = prebuilt.pack(made.bin_dir, packed[2], made.targets, tmp_path / "again.tar.xz")
    assert stamp == stamp_of(archive)
    assert (tmp_path / "again.tar.xz").read_bytes() == archive.read_bytes()


def stamp_of(archive: Path) -> dict[str, object]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(prebuilt.STAMP)
        assert file is not None
        return dict(json.load(file))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the tiny programs are linked with another C library")
def test_what_the_programs_need_is_read_off_them(archive: Path) -> None:
    needs = stamp_of(archive)["needs"]
    assert isinstance(needs, dict)
    assert [int(part) for part in needs["GLIBC"].split(".")] <= [int(p) for p in platform.libc_ver()[1].split(".")]


def test_a_newer_release_does_not_take_it_for_its_own(
    archive: Path,
    packed: tuple[Path, PatchSet, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["build", "--prebuilt", str(archive)]) == 0
    newer = shutil.copytree(packed[1].root, tmp_path / "newer")
    (newer / "files/src/new.c").write_text("int new_one = 2;\n")
    last = Path(os.environ["SHERRY_GGUF_CACHE"], LAST)
    monkeypatch.setattr(upstream, "PATCH_DIRS", (newer,))
    assert main(["which", "hello"]) == 1
    assert "run `sherry-gguf build`" in capsys.readouterr().err
    last.write_text("{}")
    assert main(["build", "--prebuilt", str(archive)]) == 1  # it is in the cache, and still of another release
    assert "another llama.cpp or patch than this release's; run `sherry-gguf build`" in capsys.readouterr().err
    assert last.read_text() == "{}"


def refused(archive: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that says why an archive was not taken; nothing of it is left."""
    capsys.readouterr()
    assert main(["build", "--prebuilt", str(archive), *more]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not list(Path(os.environ["SHERRY_GGUF_CACHE"]).glob("*prebuilt-*"))
    assert main(["which", "hello"]) == 1
    return said


def test_a_checksum_is_asked_for_and_kept_to(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = archive.with_name(f"{archive.name}.sha256")
    sha256 = beside.read_text().split()[0]
    beside.write_text("nothing of use\n")
    assert "give it (--sha256 HEX)" in refused(archive, capsys)
    beside.unlink()
    assert "give it (--sha256 HEX)" in refused(archive, capsys)
    assert f"has sha256 {sha256}, not {'0' * 64}" in refused(archive, capsys, "--sha256", "0" * 64)
    assert main(["build", "--prebuilt", str(archive), "--sha256", sha256.upper()]) == 0


def test_a_damaged_archive(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert "it is damaged or another file" in refused(archive, capsys)
    sign(archive)
    assert "is no archive of a build" in refused(archive, capsys)
    archive.write_bytes(bytes(data[: len(data) // 2]))
    sign(archive)
    assert "is no archive of a build" in refused(archive, capsys)
    archive.write_text("no archive at all")
    sign(archive)
    assert "is no archive of a build" in refused(archive, capsys)
    archive.unlink()
    assert f"cannot read {archive}" in refused(archive, capsys)
    archive.with_name(f"{archive.name}.sha256").unlink()
    assert f"cannot read {archive}: No such file or directory" in refused(archive, capsys)
    assert "cannot read /: Is a directory" in refused(Path("/"), capsys)


def stamped(**fields: object) -> Change:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
        contents[prebuilt.STAMP] = json.dumps({**json.loads(contents[prebuilt.STAMP]), **fields}).encode()

    return change


def linked(name: str, target: str) -> Change:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
        members.append(tarfile.TarInfo(name))
        members[-1].type, members[-1].linkname = tarfile.SYMTYPE, target

    return change


def added(name: str, type_of_member: bytes = tarfile.REGTYPE) -> Change:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
        members.append(tarfile.TarInfo(name))
        members[-1].type, members[-1].linkname = type_of_member, "bin/hello"
        contents[name] = b"x"

    return change


def without(name: str) -> Change:
    return lambda members, _: members.remove(next(m for m in members if m.name == name))


def not_for_this_system(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
    contents["bin/hello"] = b"\x7fELF, of another processor"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (stamped(tree="source-0000"), "another llama.cpp or patch than this release's; run `sherry-gguf build`"),
        (stamped(system="VMS VAX"), "is for VMS VAX, and this is"),
        (stamped(targets=[]), "is no archive of a build"),
        (stamped(targets="x"), "is no archive of a build"),
        (stamped(targets=["x\0"]), "is no archive of a build"),
        (stamped(targets=["../bin/hello"]), "is no archive of a build"),
        (stamped(targets=["x"], needs={}), "runtime.tar.xz: its x does not start here"),
        (stamped(targets=["x"], needs=[]), "is no archive of a build"),
        (stamped(targets=["x"], needs=None), "is no archive of a build"),
        (without(prebuilt.STAMP), "is no archive of a build"),
        (not_for_this_system, "its hello does not start here"),
        (added("bin/../../x"), "a member that no build has: bin/../../x"),
        (added("/bin/x"), "a member that no build has: /bin/x"),
        (added("other/x"), "a member that no build has: other/x"),
        (added("x"), "a member that no build has: x"),
        (added("bin/hello"), "is no archive of a build"),  # twice
        (added("bin/x", tarfile.LNKTYPE), "a member that no build has: bin/x"),
        (added("bin/x", tarfile.FIFOTYPE), "a member that no build has: bin/x"),
        (added("bin/x", tarfile.DIRTYPE), "a member that no build has: bin/x"),
        (linked("bin/x", "../../x"), "a member that no build has: bin/x"),
        (linked("bin/x", "/etc/passwd"), "a member that no build has: bin/x"),
        (linked("bin/x", ".."), "a member that no build has: bin/x"),
        (linked("source", "bin"), "a member that no build has: source"),
    ],
)
def test_members_and_stamps_that_are_not_as_they_should(
    archive: Path, change: Change, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(archive, change)
    assert said in refused(archive, capsys)


def test_flags_that_do_not_go_together(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out --target" in refused(archive, capsys, "--target", "hello")
    assert main(["build", "--sha256", "0" * 64]) == 1
    assert "name it with --prebuilt FILE" in capsys.readouterr().err


def test_a_program_that_fails_says_what_it_says(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
        contents["bin/hello"] = f"#!{sys.executable}\nimport sys; sys.exit('libfoo.so.1: no such file')\n".encode()

    rewrite(archive, change)
    assert "its hello does not start here (libfoo.so.1: no such file)" in refused(archive, capsys)


def test_a_program_that_says_no_utf8(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(members: list[tarfile.TarInfo], contents: dict[str, bytes]) -> None:
        contents["bin/hello"] = b"#!/bin/sh\nprintf 'no \\377' >&2\nexit 1\n"

    rewrite(archive, change)
    assert "its hello does not start here (no " in refused(archive, capsys)


def test_a_full_disk_is_not_the_archives_fault(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(shutil, "copyfileobj", full)
        said = refused(archive, capsys)
    assert "cannot write to the cache" in said
    assert "No space left on device; set SHERRY_GGUF_CACHE" in said
    assert main(["build", "--prebuilt", str(archive)]) == 0
