from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.commands.ways_out import BUILD
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import patching
from sherry_gguf.llama_cpp.upstream import PatchSet


def test_apply_changes_the_tree_and_adds_the_files(tiny: ModuleType, checkout: Path, patches: PatchSet) -> None:
    assert patching.apply(patches, checkout, "mine", strict=True) == []
    assert "40 + other()" in (checkout / "src/tiny.c").read_text()
    assert (checkout / "src/new.c").read_text() == "int new_one;\n"


def test_apply_inside_another_repository(
    tiny: ModuleType, tmp_path: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    tree = tiny.write_tree(tmp_path / "cache/source")
    skipped = subprocess.run(
        ["git", "apply", "--verbose", str(patches.series[0])], cwd=tree, capture_output=True, text=True
    )
    assert "40" not in (tree / "src/tiny.c").read_text(), skipped.stderr  # the trap is real
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a git hook
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    patching.apply(patches, tree, "mine", strict=True)
    assert "40 + other()" in (tree / "src/tiny.c").read_text()


def test_offsets_are_told_for_a_checkout_and_refused_for_the_pin(
    tiny: ModuleType, tmp_path: Path, patches: PatchSet
) -> None:
    moved = {"src/tiny.c": "/* one\n * two\n */\n" + tiny.TREE["src/tiny.c"]}
    lines = patching.apply(patches, tiny.write_tree(tmp_path / "a", tiny.TREE | moved), "mine", strict=False)
    assert lines == ["0001-forty.patch: Hunk #1 succeeded at 5 (offset 3 lines)."]
    with pytest.raises(SherryError, match=r"the series is not made for the pin: 0001-forty.patch: Hunk #1"):
        patching.apply(patches, tiny.write_tree(tmp_path / "b", tiny.TREE | moved), "the pin", strict=True)


def test_a_failing_hunk_names_patch_place_and_way_out(tiny: ModuleType, tmp_path: Path, patches: PatchSet) -> None:
    tree = tiny.write_tree(tmp_path / "a", tiny.TREE | {"src/tiny.c": tiny.TREE["src/tiny.c"].replace("1 +", "2 +")})
    with pytest.raises(SherryError) as error:
        patching.apply(patches, tree, "/home/me/llama.cpp", strict=False)
    assert error.value.worded(BUILD) == (
        "0001-forty.patch does not apply to /home/me/llama.cpp: the hunk at src/tiny.c:2 does not fit; the series is "
        f"made for the llama.cpp of tiny-cpp 1.0: fit the hunk in {patches.series[0]} to your tree, or take that one; "
        "`sherry-gguf build` goes back to the pin"
    )


def test_a_file_that_is_gone_is_named(tiny: ModuleType, checkout: Path, patches: PatchSet) -> None:
    (checkout / "src/tiny.c").unlink()
    with pytest.raises(SherryError, match=r"does not apply to mine: src/tiny.c: No such file or directory; "):
        patching.apply(patches, checkout, "mine", strict=False)


def test_upstreams_own_file_is_not_overwritten(checkout: Path, patches: PatchSet) -> None:
    (checkout / "src/new.c").write_text("upstream's")
    with pytest.raises(SherryError, match=r"mine has a file of its own where the patch adds one: src/new.c"):
        patching.apply(patches, checkout, "mine", strict=False)
    assert (checkout / "src/new.c").read_text() == "upstream's"


def test_a_patched_tree_is_recognised(checkout: Path, patches: PatchSet) -> None:
    patching.apply(patches, checkout, "mine", strict=False)
    with pytest.raises(SherryError, match="mine has the patch already"):
        patching.apply(patches, checkout, "mine", strict=False)


def test_without_git(checkout: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SherryError, match="git is needed to apply the patch: install git"):
        patching.apply(patches, checkout, "mine", strict=False)


def test_patch_sets_that_are_not_complete(tiny: ModuleType, tmp_path: Path, sdist: Path) -> None:
    root = tmp_path / "set"
    with pytest.raises(SherryError, match="series is missing"):
        PatchSet.load(root)
    with pytest.raises(SherryError, match="series names no patch"):
        tiny.write_patches(root, sdist, {}, {})
    (root / "series").write_text("0001-gone.patch\n")
    with pytest.raises(SherryError, match=r"series names 0001-gone.patch, and .* does not exist"):
        PatchSet.load(root)
    tiny.write_patches(root, sdist, {"0001-forty.patch": tiny.PATCH}, {})
    (root / "UPSTREAM").write_text("sdist: x\nversion: 1\nsubdir: y\n")
    with pytest.raises(SherryError, match="UPSTREAM has no line 'sha256'"):
        PatchSet.load(root)


def test_the_digest_sees_patches_files_and_names(tiny: ModuleType, tmp_path: Path, sdist: Path) -> None:
    def digest(patches: dict[str, str], files: dict[str, str]) -> str:
        digest.count += 1  # type: ignore[attr-defined]
        return tiny.write_patches(tmp_path / str(digest.count), sdist, patches, files).digest()  # type: ignore[attr-defined]

    digest.count = 0  # type: ignore[attr-defined]
    first = digest({"1": tiny.PATCH}, {"a": "x"})
    assert first == digest({"1": tiny.PATCH}, {"a": "x"})
    assert first == digest({"1": tiny.PATCH}, {"a": "x", ".DS_Store": "litter"})
    others = [
        digest({"1": tiny.PATCH + " "}, {"a": "x"}),
        digest({"1": tiny.PATCH}, {"a": "y"}),
        digest({"1": tiny.PATCH}, {"b": "x"}),
    ]
    others.append(digest({"1": tiny.PATCH, "2": tiny.PATCH}, {"a": "x"}))
    assert len({first, *others}) == 5
