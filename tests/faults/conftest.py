"""Conversions that go wrong, in processes that start quickly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, Place, new_place, small_model
from reading import tensors_of


@dataclass
class Conversion:
    """One of them, in a process of its own."""

    forks: Forks
    process: int
    folder: Path

    def signal(self, number: int) -> None:
        os.kill(self.process, number)

    def is_running(self) -> bool:
        return self.forks.ask("is_running", self.process) == "True"

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        return int(self.forks.ask("wait", self.process))

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()


class Forks:
    """The process that forks."""

    def __init__(self, model: Path, folder: Path) -> None:
        # threads do not survive a fork
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._folder, self._count = folder, 0
        self.log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("server.py"), model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True, bufsize=1,
        )  # fmt: skip
        assert self._answer() == "ready"

    def ask(self, *request: Any) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, (self._folder / "log").read_text()
        return line

    def start(self, place: Place) -> Conversion:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        arguments = ["convert", place.model, "--outfile", place.outfile, *place.flags]
        child = self.ask("start", arguments, list(place.limits.items()), folder / "stdout", folder / "stderr")
        return Conversion(self, int(child), folder)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        self.log.close()


@pytest.fixture(scope="session")
def small(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tiny_checkpoint, tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def forks(small: Path, pinned_gguf: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(small, tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def weights_of() -> Any:
    """weights_of(file): the bytes of its tensors by name."""
    return tensor_bytes


@pytest.fixture(scope="session")
def expected(forks: Forks, small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tensors of the whole model's output."""
    place = new_place(small, tmp_path_factory.mktemp("whole"))
    assert forks.start(place).wait() == 0
    return tensor_bytes(place.outfile)


@pytest.fixture
def place(small: Path, tmp_path: Path) -> Place:
    return new_place(small, tmp_path)


@pytest.fixture
def meets(forks: Forks, place: Place, expected: dict[str, bytes]) -> Any:
    """Make a fault, convert, and see one line, the exit status, the older output as it was, and nothing beside it."""

    def meet(fault: Fault) -> None:
        fault.make(place)
        there = contents(place.outfile.parent)
        conversion = forks.start(place)
        status = conversion.wait()
        if fault.said is None:
            assert status == 0, conversion.stderr
            assert tensor_bytes(place.outfile) == expected
            there[place.outfile.name] = place.outfile.read_bytes()
        else:
            assert_refused(conversion, status, fault.said)
        assert contents(place.outfile.parent) == there
        assert not place.canary.exists()

    return meet


def assert_refused(conversion: Conversion, status: int, said: str) -> None:
    (line,) = conversion.stderr.splitlines()
    assert line.startswith("sherry-gguf convert: error: ")
    assert re.search(said, line), line
    assert status == 1
    assert conversion.stdout == ""


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder; None for what is no file. Of one that is missing, nothing."""
    paths = folder.iterdir() if folder.exists() else []
    return {path.name: path.read_bytes() if path.is_file() else None for path in paths}


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {name: tensor.data.tobytes() for name, tensor in tensors_of(path).items()}
