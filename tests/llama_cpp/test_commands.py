from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from sherry_gguf.cli import main
from sherry_gguf.commands import which
from sherry_gguf.llama_cpp import find_build, upstream
from sherry_gguf.llama_cpp.upstream import PatchSet


@pytest.fixture
def own(patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> PatchSet:
    """The tiny patch set in place of the package's."""
    monkeypatch.setattr(upstream, "PATCH_DIRS", (patches.root,))
    return patches


def test_build_and_which(cache: Path, own: PatchSet, sdist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--sdist", str(sdist), "--target", "hello", "-DEXTRA=1", "-j", "2"]) == 0
    made = find_build()
    assert capsys.readouterr().out.startswith(f"1 programs in {made.bin_dir} (")
    assert main(["which", "hello"]) == 0
    assert capsys.readouterr().out == f"{made.bin_dir / 'hello'}\n"
    assert main(["which", "--source"]) == 0
    assert capsys.readouterr().out == f"{made.source}\n"
    assert main(["which", "llama-cli"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no program 'llama-cli' is built; there are hello" in printed.err


def test_which_follows_the_last_build(
    cache: Path, own: PatchSet, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["which", "hello"]) == 1
    assert "run `sherry-gguf build`" in capsys.readouterr().err
    assert main(["build", "--source", str(checkout), "--target", "hello"]) == 0
    source = find_build().source
    capsys.readouterr()
    assert main(["which", "--source"]) == 0
    assert capsys.readouterr().out == f"{source}\n"
    (checkout / "src/new_file.c").touch()
    assert main(["which", "hello"]) == 1
    assert f"run `sherry-gguf build --source {checkout}`" in capsys.readouterr().err


def test_build_names_a_wrong_sdist(
    cache: Path, own: PatchSet, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--sdist", str(checkout / "CMakeLists.txt")]) == 1
    assert "CMakeLists.txt has sha256" in capsys.readouterr().err


def test_which_says_how_to_do_without_a_checkout_that_is_gone(
    cache: Path, own: PatchSet, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--source", str(checkout), "--target", "hello"]) == 0
    checkout.rename(checkout.with_name("moved"))
    for what in ("hello", "--source"):
        capsys.readouterr()
        assert main(["which", what]) == 1
        said = capsys.readouterr().err
        assert f"{checkout} is no llama.cpp checkout" in said
        assert "`sherry-gguf build` goes back to the pin" in said


def test_the_module_has_the_same_commands(cache: Path) -> None:
    command = [sys.executable, "-m", "sherry_gguf.llama_cpp"]
    done = subprocess.run([*command, "which", "llama-cli"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python -m sherry_gguf.llama_cpp which: error: no up-to-date build")
    assert subprocess.run([*command, "convert"], capture_output=True).returncode == 2


def test_a_cache_that_cannot_be(
    own: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300), Path("~nobody-of-that-name/x")):
        monkeypatch.setenv("SHERRY_GGUF_CACHE", str(path))
        for command in (["which", "hello"], ["build"]):
            assert main(command) == 1
            said = capsys.readouterr().err
            assert f"error: cannot write to the cache {path}: " in said
            assert "set SHERRY_GGUF_CACHE" in said
            assert said.count("\n") == 1


def test_an_error_of_the_system_is_one_line(
    cache: Path, own: PatchSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, said in (
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (OSError("two\nlines"), "two lines"),
    ):

        def execute(args: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(which, "execute", execute)
        assert main(["which", "hello"]) == 1
        assert capsys.readouterr().err == f"sherry-gguf which: error: {said}\n"


@pytest.mark.parametrize("jobs", ["0", "-1", "x", "1.5"])
def test_jobs_are_counted(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", f"-j{jobs}"])
    assert f"argument -j/--jobs: expected a number of at least 1, not '{jobs}'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["which"], ["which", "a", "--source"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
