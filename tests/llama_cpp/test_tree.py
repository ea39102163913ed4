from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import cache as caches
from sherry_gguf.llama_cpp import source, tree
from sherry_gguf.llama_cpp.upstream import PatchSet

Rewrite = Callable[[Path, str, str], None]


def test_source_of_the_pin_is_patched_and_kept(tiny: ModuleType, cache: Path, fetched: PatchSet) -> None:
    first = source(patches=fetched)
    assert first.parent == cache
    assert "40 + other()" in (first / "src/tiny.c").read_text()
    assert (first / "src/new.c").is_file()
    before = (first / "src/tiny.c").stat().st_mtime_ns
    assert source(patches=fetched) == first
    assert (first / "src/tiny.c").stat().st_mtime_ns == before


def test_another_patch_is_another_tree(cache: Path, fetched: PatchSet, rewrite: Rewrite) -> None:
    first = source(patches=fetched)
    rewrite(fetched.root / "files/src/new.c", "new_one", "newer")
    second = source(patches=PatchSet.load(fetched.root))
    assert first != second
    assert (first / "src/new.c").read_text() == "int new_one;\n"
    assert (second / "src/new.c").read_text() == "int newer;\n"


def test_a_hunk_that_fails_leaves_nothing_behind(cache: Path, fetched: PatchSet, rewrite: Rewrite) -> None:
    rewrite(fetched.series[0], "1 + other", "7 + other")
    with pytest.raises(SherryError, match=r"does not apply to tiny-cpp 1.0"):
        source(patches=PatchSet.load(fetched.root))
    assert {path.name for path in cache.iterdir()} == {"downloads", "lock"}


def test_an_interrupt_leaves_no_tree(cache: Path, fetched: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **more: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tree.patching, "apply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            source(patches=fetched)
    assert not list(cache.glob("*source*"))
    (cache / "partial-source-x").mkdir()  # of a process that was killed
    (cache / "partial-checkout-x-1").touch()
    assert source(patches=fetched).is_dir()
    assert not list(cache.glob("partial-*"))


def test_a_checkout_is_copied_in_its_present_state(
    tiny: ModuleType, cache: Path, checkout: Path, patches: PatchSet, rewrite: Rewrite
) -> None:
    tiny.write_tree(checkout, {"build/CMakeCache.txt": "", "build-x/a": "", "tools/build/kept": ""})
    first = source(checkout, patches=patches)
    assert not (first / "build").exists()
    assert not (first / "build-x").exists()
    assert (first / "tools/build/kept").exists()
    assert source(checkout, patches=patches) == first
    os.utime(checkout / "src/hello.c")
    assert source(checkout, patches=patches) == first, "a touched file is no change"
    rewrite(checkout / "src/hello.c", "main", "main ")
    second = source(checkout, patches=patches)
    assert second != first
    (checkout / "scripts/run.sh").chmod(0o644)
    assert source(checkout, patches=patches) not in (first, second)
    assert "1 + other" in (checkout / "src/tiny.c").read_text(), "the user's own is not patched"


def test_a_checkout_that_changes_while_it_is_copied(
    cache: Path, checkout: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy

    def edit_and_copy(file: Path, to: Path) -> None:
        (checkout / "src/other.c").write_text("edited")
        copy(file, to)

    with monkeypatch.context() as patch:
        patch.setattr(tree.shutil, "copy", edit_and_copy)
        with pytest.raises(SherryError, match="mine changed while it was copied: try again"):
            source(checkout, patches=patches)
    assert not list(cache.glob("source-*"))
    assert (source(checkout, patches=patches) / "src/other.c").read_text() == "edited"


def test_of_a_git_checkout_what_git_ignores_is_left_out(
    tiny: ModuleType, cache: Path, checkout: Path, patches: PatchSet
) -> None:
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    tiny.write_tree(checkout, {".gitignore": "/out/\n", "out/big.o": "", "untracked.c": "", "tracked.c": ""})
    subprocess.run(["git", "add", "tracked.c", "src"], cwd=checkout, check=True)
    (checkout / "src/other.c").unlink()
    names = {str(path.relative_to(t)) for t in [source(checkout, patches=patches)] for path in t.rglob("*.[co]")}
    assert names == {"untracked.c", "tracked.c", "src/tiny.c", "src/hello.c", "src/new.c"}


def test_a_directory_that_is_no_llama_cpp(cache: Path, tmp_path: Path, patches: PatchSet) -> None:
    with pytest.raises(SherryError, match=r"nothing is no llama.cpp checkout: it has no ggml/include/ggml.h"):
        source(tmp_path / "nothing", patches=patches)


def test_mirror_touches_only_what_differs(tiny: ModuleType, tmp_path: Path) -> None:
    one, two = tiny.write_tree(tmp_path / "1", {"a": "a", "b": "b", "c": "c"}), tmp_path / "2"
    tree.mirror(one, two)
    for name in "abc":
        os.utime(two / name, (1000, 1000))
    (one / "a").write_text("A")
    os.utime(one / "a", (500, 500))  # older than what was made from the other state
    (one / "b").unlink()
    tree.mirror(one, two)
    assert (two / "a").read_text() == "A"
    assert (two / "a").stat().st_mtime > time.time() - 100
    assert not (two / "b").exists()
    assert (two / "c").stat().st_mtime == 1000


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHERRY_GGUF_CACHE", str(tmp_path / "a/b"))
    assert caches.cache_dir() == tmp_path / "a/b"
    monkeypatch.delenv("SHERRY_GGUF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert caches.cache_dir().is_relative_to(tmp_path)
    assert caches.cache_dir().name == "sherry-gguf"


def test_one_writer_at_a_time(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = []

    def second() -> None:
        with caches.locked():
            events.append("second")

    with caches.locked():
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for another process" not in capsys.readouterr().err:
            time.sleep(0.01)
        events.append("first")
    thread.join(timeout=10)
    assert events == ["first", "second"]


def test_a_full_disk_names_the_cache(cache: Path) -> None:
    named = pytest.raises(SherryError, match=r"cannot write to the cache .*: No space left .*SHERRY_GGUF_CACHE")
    with named, caches.locked():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), caches.locked():
        (cache / "nothing").read_bytes()


def test_a_cache_without_a_place_for_the_lock(cache: Path) -> None:
    (cache / "lock").mkdir(parents=True)
    with pytest.raises(SherryError, match=r"cannot write to the cache .*: Is a directory"), caches.locked():
        pass


def test_the_cache_keeps_the_last_used(cache: Path) -> None:
    cache.mkdir()
    for age in range(caches.KEPT + 2):
        for kind in ("source", "work", "build"):
            path = cache / f"{kind}-{age}"
            path.mkdir()
            (path / "file").touch()
            os.utime(path, (1000 - age, 1000 - age))
    caches.used(cache / f"build-{caches.KEPT + 1}")
    caches.keep_recent(cache)
    assert {path.name for path in cache.glob("source-*")} == {f"source-{age}" for age in range(caches.KEPT)}
    assert {path.name for path in cache.glob("build-*")} == {
        f"build-{age}" for age in (*range(caches.KEPT - 1), caches.KEPT + 1)
    }
    assert len(list(cache.iterdir())) == 3 * caches.KEPT


def test_a_tree_in_an_unpacked_sdist(cache: Path, sdist: Path, patches: PatchSet, tmp_path: Path) -> None:
    """Its .git names a repository that is not there; what lies beside it in the archive is no part of it."""
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    inside = tmp_path / "unpacked/tiny-1.0/vendor/llama.cpp"
    assert (inside / ".git").is_file()
    found = source(inside, patches=patches)
    assert not (found / ".git").exists()
    assert "40 + other()" in (found / "src/tiny.c").read_text()
    (inside / ".git").write_text("gitdir: " + str(tmp_path / "nowhere"))
    assert source(inside, patches=patches) == found


def test_a_worktree_is_a_repository(tiny: ModuleType, cache: Path, checkout: Path, patches: PatchSet) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(checkout)]
    tiny.write_tree(checkout, {".gitignore": "/out/\n"})
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["worktree", "add", "-q", "../second"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    second = checkout.parent / "second"
    tiny.write_tree(second, {"out/big.o": ""})
    assert (second / ".git").is_file()
    assert not (source(second, patches=patches) / "out").exists()
