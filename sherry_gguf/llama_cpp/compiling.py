"""Running cmake and ninja: the tools, a progress bar, a log, and the lines that matter of a failure."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.cache import say
from sherry_gguf.llama_cpp.config import Config
from sherry_gguf.llama_cpp.found import lacks
from sherry_gguf.llama_cpp.patching import git_environment

SHOWN = 20  # lines of a failure
QUIET = 30.0  # seconds between lines where there is no terminal
STEP = 5.0  # seconds of a processor that one of ninja's steps takes: 270 took 12 minutes on two of Emerald Rapids
STATUS = re.compile(r"\[(\d+)/(\d+)\] (.*)")


def check_compilers(config: Config) -> None:
    """Raise SherryError if no C or C++ compiler can be run. One that is named by -D is left to cmake."""
    environment = dict(config.environment)
    for language, variable, known in (("C", "CC", ("cc", "gcc", "clang")), ("CXX", "CXX", ("c++", "g++", "clang++"))):
        if any(define.startswith(f"CMAKE_{language}_COMPILER") for define in config.defines):
            continue
        chosen = environment.get(variable, "").split()[:1]
        if not any(_runs(name) for name in chosen or known):
            tried = f"{variable}={chosen[0]}" if chosen else ", ".join(known)
            raise SherryError(
                f"no {language.replace('CXX', 'C++')} compiler (tried {tried}): install one "
                "(Debian, Ubuntu: `apt install g++`; macOS: `xcode-select --install`)"
            )


def compile_targets(source: Path, work: Path, config: Config, targets: Sequence[str], jobs: int | None) -> None:
    """Configure ``source`` in work/build and build the targets; what was built before is not built again.

    The whole output goes to work/build.log. Raises SherryError after showing the lines that
    say why it failed.
    """
    cmake, ninja = _tool("cmake", "CMAKE_BIN_DIR"), _tool("ninja", "BIN_DIR")
    build, log = work / "build", work / "build.log"
    log.unlink(missing_ok=True)
    # no terminal: plain lines in the log; ceilings: upstream asks git for a commit, and must not get another project's
    environment = git_environment(source) | dict(config.environment) | {"NINJA_STATUS": "[%f/%t] "}

    configure = [cmake, "-S", str(source), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    say("configuring")
    status, lines = _start([*configure, *config.cmake_arguments()], environment, log, lambda line: None)
    if status != 0:
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # it remembers what it failed with
        _show(_from_first(lines, "CMake Error") or lines[-SHOWN:])
        raise SherryError(f"cmake could not configure llama.cpp, see above and {log}")

    for line in lacks((*config.found, *config.defines)):
        say(line)
    _estimate([ninja, "-C", str(build)], build, targets, jobs or os.cpu_count() or 1)
    build_command = [ninja, "-C", str(build), *([] if jobs is None else ["-j", str(jobs)]), *targets]
    with _Bar() as bar:
        status, lines = _start(build_command, environment, log, bar.line)
    if any("UI: no assets available" in line for line in lines):
        say(f"llama-server has no web page, as npm could not build it, most likely for lack of a network: see {log}")
    if status != 0:
        _show(_relevant(_from_first(lines, "FAILED:")) or lines[-SHOWN:])
        killed = any(re.search(r"\bKilled\b|[Oo]ut of memory|[Cc]annot allocate memory", line) for line in lines)
        hint = "; the compiler was killed, most likely for lack of memory: try -j 1" if killed else ""
        raise SherryError(f"the build of llama.cpp failed, see above and {log}{hint}")


def _estimate(ninja: Sequence[str], build: Path, targets: Sequence[str], processors: int) -> None:
    """Say how long a build will take, if that is minutes: of all the steps to the targets those never done before."""
    done = subprocess.run([*ninja, "-t", "commands", *targets], stdin=subprocess.DEVNULL, capture_output=True)
    log = build / ".ninja_log"
    steps = len(done.stdout.splitlines()) - (len(log.read_bytes().splitlines()) if log.is_file() else 0)
    minutes = round(steps * STEP / processors / 60)
    if minutes > 0:
        what = targets[0] if len(targets) == 1 else f"{len(targets)} programs"
        say(f"building {what}: {steps} steps, about {minutes} minutes on {processors} processors")


def _tool(name: str, attribute: str) -> str:
    """Path of a tool: from its PyPI package in this environment, activated or not, else from PATH."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    with suppress(ImportError, AttributeError):
        places.insert(0, getattr(importlib.import_module(name), attribute))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise SherryError(f"{name} is missing: `{sys.executable} -m pip install {name}`")
    return found


def _runs(compiler: str) -> bool:
    # macOS has a `cc` that only tells you to install one
    if shutil.which(compiler) is None:
        return False
    return subprocess.run([compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def _start(
    command: list[str], environment: dict[str, str], log: Path, on_line: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run a command; append what it prints to the log and hand on each line; return its status and the lines."""
    lines: list[str] = []
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip("\n"))
                on_line(lines[-1])
        except BaseException:
            process.terminate()  # ninja stops its compilers and removes half-written outputs
            process.communicate()
            raise
    return process.returncode, lines


class _Bar:
    """Progress of ninja: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("building", total=None)
        self.start = self.said = time.monotonic()

    def __enter__(self) -> _Bar:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def line(self, line: str) -> None:
        """Take one line of ninja's output."""
        if not (status := STATUS.match(line)):
            return
        done, total = int(status[1]), int(status[2])
        now = time.monotonic()
        if self.console.is_terminal:
            self.progress.update(self.task, completed=done, total=total)
        elif now - self.said >= QUIET:
            self.said = now
            say(f"building [{done}/{total}] {now - self.start:.0f} s")


def _from_first(lines: list[str], start: str) -> list[str]:
    """The lines from the first that begins with ``start``; none if there is none."""
    return next((lines[i:] for i, line in enumerate(lines) if line.startswith(start)), [])


def _relevant(lines: list[str]) -> list[str]:
    """What a failed step of ninja was, and its output from the first error on."""
    end = next((i for i, line in enumerate(lines) if STATUS.match(line)), len(lines))
    block = lines[:end]
    first = next((i for i, line in enumerate(block[2:], 2) if re.search(r"error|undefined|Killed", line)), 2)
    return block[:1] + block[first:]  # block[1] is the command


def _show(lines: list[str]) -> None:
    say("\n".join(f"  {line}" for line in lines[:SHOWN]))
