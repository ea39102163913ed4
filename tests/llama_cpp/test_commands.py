from __future__ import annotations

from pathlib import Path

import pytest

from sherry_gguf.cli import main
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


@pytest.mark.parametrize("arguments", [["which"], ["which", "a", "--source"], ["build", "-j", "0"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
