"""A GGUF in llama.cpp: its logits for given tokens, and its own tokenizer's tokens for a text."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_MAGIC = b"SHLOGITS"
_HEADER = np.dtype([("magic", "S8"), ("n_vocab", "=i4"), ("n_positions", "=i4")])


@contextmanager
def open_logits(
    program: Path, model: Path, n_ctx: int, first: int, *, threads: int, options: Sequence[str] = ()
) -> Generator[Callable[[I32], F32], None, None]:
    """A function from the tokens of a chunk, int32[n_ctx], to its logits from position first on, float32[., n_vocab].

    ``program`` is sherry-logits, ``options`` more of its flags. It runs until the context ends and computes only when
    it is asked, so that several can be open without competing for the processor.

    Raises SherryError with the program's own last words where it fails.
    """
    command = [str(part) for part in (program, "-m", model, "-c", n_ctx, "--from", first, "-t", threads, *options)]
    with _Program(command) as running:
        header = np.frombuffer(running.read(_HEADER.itemsize), dtype=_HEADER)[0]
        if (header["magic"], header["n_positions"]) != (_MAGIC, n_ctx - first):
            raise SherryError(f"{program}: its output is of another version", Way.BUILD(""))
        shape = (n_ctx - first, int(header["n_vocab"]))

        def logits(chunk: I32) -> F32:
            running.write(chunk.astype(np.int32).tobytes())
            return np.frombuffer(running.read(4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)

        yield logits
        running.finish()


class _Program:
    """A program that answers on stdout what it reads on stdin. Left early, it is killed."""

    def __init__(self, command: list[str]) -> None:
        self._name = command[0]
        # a file, as a pipe that nobody reads would fill up
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # what was written last and not read
            self._stdin.close()
        self._stdout.close()
        self._log.close()

    def write(self, data: bytes) -> None:
        try:
            self._stdin.write(data)
            self._stdin.flush()
        except BrokenPipeError:
            self._fail()

    def read(self, size: int) -> bytes:
        data = self._stdout.read(size)
        if len(data) < size:
            self._fail()
        return data

    def finish(self) -> None:
        """Let it come to its end, which may fail too."""
        self._stdin.close()
        if self._process.wait() != 0:
            self._fail()

    def _fail(self) -> None:
        status = self._process.wait()
        self._log.seek(0)
        raise SherryError(f"{self._name} failed with status {status}: {last_words(self._log.read())}")


def tokenize(program: Path, model: Path, text: Path) -> I32:
    """The tokens int32[n] that a GGUF's own tokenizer makes of a text file, the BOS included where the model uses one.

    ``program`` is llama-tokenize. Raises SherryError with the program's last words where it fails.
    """
    options = ["--ids", "--no-escape", "--no-log-prefix", "--no-log-timestamps"]
    command = [str(program), "-m", str(model), "-f", str(text), *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise SherryError(f"{program} failed with status {done.returncode}: {last_words(done.stderr)}")
    return np.array(json.loads(done.stdout), dtype=np.int32)


def last_words(stderr: bytes) -> str:
    """What a program that failed said at its end, in one line."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "without a word"
