"""A GGUF in llama.cpp: its logits for given tokens, and its own tokenizer's tokens for a text."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_MAGIC = b"SHLOGITS"
_HEADER = np.dtype([("magic", "S8"), ("n_vocab", "=i4"), ("n_positions", "=i4"), ("n_chunks", "=i4")])


def stream_logits(
    program: Path, model: Path, chunks: I32, first: int, *, threads: int, options: Sequence[str] = ()
) -> Generator[F32, None, None]:
    """chunks int32[n, n_ctx] -> for each one its logits float32[n_ctx - first, n_vocab], from position first on.

    ``program`` is sherry-logits, ``options`` more of its flags. The program computes while the caller works on the
    chunk before; a pipe's capacity is all that it gets ahead. Closing the generator stops it.

    Raises SherryError with the program's own last words where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="sherry-parity-") as directory:
        tokens = Path(directory, "tokens")
        chunks.astype(np.int32).tofile(tokens)
        command = [program, "-m", model, "-c", chunks.shape[1], "--from", first, "-t", threads, *options, tokens]
        with _pipe([str(part) for part in command], Path(directory, "stderr")) as stream:
            header = np.frombuffer(_read(stream, _HEADER.itemsize), dtype=_HEADER)[0]
            expected = (_MAGIC, chunks.shape[1] - first, len(chunks))
            if (header["magic"], header["n_positions"], header["n_chunks"]) != expected:
                raise SherryError(f"{program}: its output is of another version; run `sherry-gguf build`")
            shape = (int(header["n_positions"]), int(header["n_vocab"]))
            for _ in range(len(chunks)):
                yield np.frombuffer(_read(stream, 4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)


def tokenize(program: Path, model: Path, text: Path) -> I32:
    """The tokens int32[n] that a GGUF's own tokenizer makes of a text file, the BOS included where the model uses one.

    ``program`` is llama-tokenize. Raises SherryError with the program's last words where it fails.
    """
    options = ["--ids", "--no-escape", "--no-log-prefix", "--no-log-timestamps"]
    command = [str(program), "-m", str(model), "-f", str(text), *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise SherryError(f"{program} failed with status {done.returncode}: {_last_words(done.stderr)}")
    return np.array(json.loads(done.stdout), dtype=np.int32)


class _EndedEarly(Exception):
    """The program's output is shorter than its header says: it failed."""


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _EndedEarly
    return data


@contextmanager
def _pipe(command: list[str], log: Path) -> Generator[IO[bytes], None, None]:
    """Standard output of a running command. Its standard error goes to the file ``log``, and from there to errors."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    complete = False
    try:
        yield process.stdout
        complete = True
        process.wait()
    except _EndedEarly:
        process.wait()
    finally:
        process.kill()  # where the caller left early; does nothing to a program that has ended
        status = process.wait()
        process.stdout.close()
    if not complete or status != 0:
        raise SherryError(f"{command[0]} failed with status {status}: {_last_words(log.read_bytes())}")


def _last_words(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "without a word"
