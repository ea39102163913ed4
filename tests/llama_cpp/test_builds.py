"""Builds of the tiny tree with the real cmake, ninja and compiler."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refused

from sherry_gguf.commands.ways_out import BUILD
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import Build, build, builds, find_build
from sherry_gguf.llama_cpp.config import Config, cpu_features
from sherry_gguf.llama_cpp.upstream import PatchSet

Rewrite = Callable[[Path, str, str], None]


def output(made: Build, program: str = "hello") -> str:
    return subprocess.run([made.program(program)], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_build_runs_from_anywhere(cache: Path, fetched: PatchSet, tmp_path: Path) -> None:
    made = build(["hello"], patches=fetched)
    assert made.programs == ("hello",)
    assert made.bin_dir.parent.parent == cache
    assert made.source.name.startswith("source-")
    shutil.rmtree(next(cache.glob("work-*")))
    assert output(made) == "40"
    moved = Build(made.bin_dir.rename(tmp_path / "moved"), made.source, made.targets)
    assert output(moved) == "40", "the library is found beside the program"
    assert moved.lib("tiny").tiny() == 40


def test_a_build_that_is_there_is_returned(
    cache: Path, fetched: PatchSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build(["hello"], patches=fetched)
    capsys.readouterr()
    monkeypatch.setenv("PATH", "")  # no compiler, no git
    assert build(["hello"], patches=fetched) == first == find_build(patches=fetched)
    assert capsys.readouterr().err == ""
    with pytest.raises(SherryError, match="no C compiler"):
        build(["second"], patches=fetched)


def test_one_more_target_joins_the_build(cache: Path, fetched: PatchSet) -> None:
    first = build(["hello"], patches=fetched)
    before = (first.bin_dir / "hello").stat().st_ino
    second = build(["second"], patches=fetched)
    assert second.programs == ("hello", "second")
    assert (first.bin_dir / "hello").stat().st_ino == before
    assert output(second, "second") == "40"


def test_another_patch_compiles_only_what_differs(cache: Path, fetched: PatchSet, rewrite: Rewrite) -> None:
    first = build(["hello"], patches=fetched)
    rewrite(fetched.series[0], "40 +", "50 +")
    with refused(r"no up-to-date build.*run `sherry-gguf build`", BUILD):
        find_build(patches=PatchSet.load(fetched.root))
    second = build(["hello"], patches=PatchSet.load(fetched.root))
    assert second.bin_dir != first.bin_dir
    assert (output(first), output(second)) == ("40", "50")
    [log] = cache.glob("work-*/build.log")
    assert "tiny.c.o" in log.read_text()
    assert "hello.c.o" not in log.read_text()
    rewrite(fetched.series[0], "50 +", "40 +")
    shutil.rmtree(first.bin_dir.parent)
    assert output(build(["hello"], patches=PatchSet.load(fetched.root))) == "40", "an older state comes back"


def test_a_checkout_is_built_in_its_present_state(
    cache: Path, checkout: Path, patches: PatchSet, rewrite: Rewrite
) -> None:
    assert output(build(["hello"], source=checkout, patches=patches)) == "40"
    rewrite(checkout / "src/hello.c", "tiny()", "tiny() + 1")
    assert output(build(["hello"], source=checkout, patches=patches)) == "41"


def test_defines_and_flags_are_other_builds(cache: Path, fetched: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build(["hello"], patches=fetched)
    defined = build(["hello"], defines=["EXTRA=2"], patches=fetched)
    assert (output(plain), output(defined)) == ("40", "42")
    monkeypatch.setenv("CFLAGS", "-UEXTRA -DEXTRA=3")
    assert build(["hello"], patches=fetched) != plain
    with pytest.raises(SherryError, match="-D EXTRA: expected NAME=VALUE"):
        build(["hello"], defines=["EXTRA"], patches=fetched)


@pytest.mark.parametrize("stamp", ["", '{"targets": ["hel', "[]", "{}"])
def test_a_damaged_stamp_is_no_build(cache: Path, fetched: PatchSet, stamp: str) -> None:
    made = build(["hello"], patches=fetched)
    (made.bin_dir.parent / builds.STAMP).write_text(stamp)
    with pytest.raises(SherryError, match="no up-to-date build"):
        find_build(patches=fetched)
    assert build(["hello"], patches=fetched) == made


def test_a_build_without_its_tree_is_no_build(cache: Path, fetched: PatchSet) -> None:
    made = build(["hello"], patches=fetched)
    shutil.rmtree(made.source)
    with pytest.raises(SherryError, match="no up-to-date build"):
        find_build(patches=fetched)


def test_a_build_in_a_read_only_cache_is_found(
    cache: Path, checkout: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(["hello"], source=checkout, patches=patches)
    builds.remember(checkout, ())

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("utime", "replace", "rename", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    os_stat = (checkout / "src/hello.c").stat()
    (checkout / "src/hello.c").write_bytes((checkout / "src/hello.c").read_bytes())  # a new time, to be noted
    assert (checkout / "src/hello.c").stat().st_mtime_ns != os_stat.st_mtime_ns
    assert find_build(patches=patches) == made
    assert build(["hello"], source=checkout, patches=patches) == made
    builds.remember(checkout, ())  # nothing to write


def test_remember_chooses_what_find_build_finds(cache: Path, fetched: PatchSet) -> None:
    defined = build(["hello"], defines=["EXTRA=2"], patches=fetched)
    plain = build(["hello"], patches=fetched)
    assert find_build(patches=fetched) == plain
    builds.remember(None, ["EXTRA=2"])
    assert find_build(patches=fetched) == defined
    builds.remember(None, ["EXTRA=7"])
    with refused("run `sherry-gguf build -D EXTRA=7`", BUILD):
        find_build(patches=fetched)


def test_a_compile_error_is_shown_and_logged(
    cache: Path, checkout: Path, patches: PatchSet, rewrite: Rewrite, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(checkout / "src/hello.c", "tiny()", "nowhere")
    with pytest.raises(SherryError, match=r"the build of llama.cpp failed, see above and .*build.log") as error:
        build(["hello"], source=checkout, patches=patches)
    assert "\n" not in str(error.value)
    shown = capsys.readouterr().err
    assert "FAILED:" in shown
    assert "hello.c:5" in shown
    assert "nowhere" in shown
    assert len(shown.splitlines()) < 30
    assert "nowhere" in next(cache.glob("work-*/build.log")).read_text()
    assert not list(cache.glob("build-*"))
    rewrite(checkout / "src/hello.c", "nowhere", "tiny()")
    assert output(build(["hello"], source=checkout, patches=patches)) == "40"


def test_an_unknown_target_and_a_broken_configuration(
    cache: Path, checkout: Path, patches: PatchSet, rewrite: Rewrite, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SherryError, match="failed, see above"):
        build(["llama-cly"], source=checkout, patches=patches)
    assert "unknown target 'llama-cly'" in capsys.readouterr().err
    rewrite(checkout / "CMakeLists.txt", "project(tiny C CXX)", "project(tiny C CXX)\nfind_package(Nowhere REQUIRED)")
    with pytest.raises(SherryError, match="cmake could not configure"):
        build(["hello"], source=checkout, patches=patches)
    assert "Nowhere" in capsys.readouterr().err


def test_an_interrupted_build_goes_on(cache: Path, checkout: Path, patches: PatchSet) -> None:
    with open(checkout / "CMakeLists.txt", "a") as file:
        file.write("add_custom_command(OUTPUT slow COMMAND test -e ${SLOW_DONE} || sleep 60 COMMAND touch slow)\n")
        file.write("add_custom_target(slow_step DEPENDS slow)\nadd_dependencies(second slow_step)\n")
    done = cache.parent / "done"
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom sherry_gguf.llama_cpp import build\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts with it ignored
        "from sherry_gguf.llama_cpp.upstream import PatchSet\n"
        "build(['hello', 'second'], source=Path(sys.argv[1]), defines=['SLOW_DONE=' + sys.argv[3]], jobs=2, "
        "patches=PatchSet.load(Path(sys.argv[2])))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code, str(checkout), str(patches.root), str(done)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    library = "work-*/build/bin/libtiny.*"
    deadline = time.monotonic() + 60
    while not list(cache.glob(library)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - start < 20, "the compilers were stopped, not waited for"
    assert not list(cache.glob("build-*"))

    [before] = {path.stat().st_mtime_ns for path in cache.glob("work-*/build/CMakeFiles/tiny.dir/src/other.c.o")}
    done.touch()
    made = build(["hello", "second"], source=checkout, defines=[f"SLOW_DONE={done}"], patches=patches)
    assert output(made, "second") == "40"
    [after] = {path.stat().st_mtime_ns for path in cache.glob("work-*/build/CMakeFiles/tiny.dir/src/other.c.o")}
    assert after == before, "what was compiled is not compiled again"


def test_no_compiler_is_said_before_anything_is_fetched(
    cache: Path, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++ -m64")
    with pytest.raises(SherryError, match=r"no C\+\+ compiler \(tried CXX=/nowhere/g\+\+\): install one") as error:
        build(["hello"], patches=patches)
    assert "apt install g++" in str(error.value)
    assert "xcode-select --install" in str(error.value)
    assert not cache.exists() or not (cache / "downloads").exists()


def test_a_program_that_was_not_built(cache: Path, fetched: PatchSet) -> None:
    made = build(["hello", "tiny"], patches=fetched)
    with pytest.raises(SherryError, match="no program 'llama-cly' is built; there are hello; build the target"):
        made.program("llama-cly")
    with pytest.raises(SherryError, match="no program 'tiny' is built"):
        made.program("tiny")
    with pytest.raises(SherryError, match="no shared library 'nowhere' is built"):
        made.lib("nowhere")


def test_the_machine_is_a_part_of_a_native_build_only(monkeypatch: pytest.MonkeyPatch) -> None:
    native, portable = Config(), Config(defines=("GGML_NATIVE=OFF",))
    before = native.identity(), portable.identity()
    monkeypatch.setattr("sherry_gguf.llama_cpp.config.cpu_features", lambda: "another processor")
    assert native.identity() != before[0]
    assert portable.identity() == before[1]


def test_cpu_features_are_stable_and_not_empty() -> None:
    assert cpu_features()
    assert cpu_features() == cpu_features()


def test_config_file_that_is_not_ours_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "clang")
    file = tmp_path / "last.json"
    saved = Config.of(tmp_path, ("A=1", "B:BOOL=ON"))
    saved.save(file)
    assert Config.load(file) == saved
    assert saved.environment == (("CC", "clang"),)
    for text in ("", "[]", "{}", json.dumps({"source": None})):
        file.write_text(text)
        assert Config.load(file) == Config.of(None, ())
