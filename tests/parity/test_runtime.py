"""Reading logits from a program: a stand-in for sherry-logits that also fails in the ways a real one can."""

from __future__ import annotations

import os
import sys
import textwrap
import time

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.parity import runtime

N_VOCAB = 3
CHUNKS = np.arange(8, dtype=np.int32).reshape(2, 4)

HEAD = """
    import os, sys, struct, time, pathlib
    import numpy as np
    args = sys.argv[1:]
    n_ctx, first = int(args[args.index("-c") + 1]), int(args[args.index("--from") + 1])
    out = sys.stdout.buffer

    def say_header(header=b"SHLOGITS" + struct.pack("=2i", 3, n_ctx - first)):
        out.write(header)
        out.flush()

    def answer():  # the logits of token t are t, t + 0.5, t + 1
        data = sys.stdin.buffer.read(4 * n_ctx)
        tokens = np.frombuffer(data, dtype=np.int32)[first:, None]
        out.write((tokens + np.arange(3, dtype=np.float32) / 2).astype(np.float32).tobytes())
        out.flush()
        return data
"""


@pytest.fixture
def program(tmp_path):
    def make(*body):
        path = tmp_path / "program"
        lines = [f"#!{sys.executable}", textwrap.dedent(HEAD), *body]
        path.write_text("\n".join(lines))
        path.chmod(0o755)
        return path

    return make


def ask(path, *, options=()):
    with runtime.open_logits(path, path, 4, 1, threads=1, options=options) as logits:
        return [logits(chunk) for chunk in CHUNKS]


def test_each_chunk_is_answered(program):
    path = program("say_header()", "while answer(): pass")
    found = ask(path)
    assert [part.shape for part in found] == [(3, N_VOCAB)] * 2
    assert found[0][:, 0].tolist() == [1, 2, 3]
    assert found[1].tolist() == [[5, 5.5, 6], [6, 6.5, 7], [7, 7.5, 8]]


def test_options_reach_the_program(program):
    path = program("assert args[args.index('-t') + 1] == '1' and '--kv-f32' in args; sys.exit('as asked')")
    with pytest.raises(SherryError, match="as asked"):
        ask(path, options=("--kv-f32",))


def test_failure_is_told_in_the_program_s_words(program):
    path = program("print('first line', file=sys.stderr); sys.exit('error: no such model')")
    with pytest.raises(SherryError, match=r"program failed with status 1: first line \| error: no such model$"):
        ask(path)


def test_failure_between_chunks(program):
    path = program("say_header()", "answer()", "sys.exit('decode failed')")
    with pytest.raises(SherryError, match="status 1: decode failed"):
        ask(path)


def test_failure_after_the_last_chunk(program):
    path = program("say_header()", "answer()", "answer()", "sys.exit(3)")
    with pytest.raises(SherryError, match="status 3: without a word"):
        ask(path)


def test_truncated_output_of_a_program_that_says_it_is_well(program):
    path = program("say_header()", "out.write(b'1234')")
    with pytest.raises(SherryError, match="status 0"):
        ask(path)


@pytest.mark.parametrize("header", ['b"SOMETHIN" + struct.pack("=2i", 3, 3)', 'b"SHLOGITS" + struct.pack("=2i", 3, 9)'])
def test_another_header_is_refused(program, header):
    path = program(f"say_header({header})", "answer()")
    with pytest.raises(SherryError, match="another version"):
        ask(path)


def test_leaving_early_ends_the_program(program, tmp_path):
    path = program(
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))",
        "say_header()",
        "answer()",
        "time.sleep(600)",
    )

    def interrupted():
        with runtime.open_logits(path, path, 4, 1, threads=1) as logits:
            logits(CHUNKS[0])
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_tokens_of_the_gguf(tmp_path):
    path = tmp_path / "llama-tokenize"
    path.write_text("#!/bin/sh\necho '[1, 15, 7]'\n")
    path.chmod(0o755)
    assert runtime.tokenize(path, path, path).tolist() == [1, 15, 7]
    path.write_text("#!/bin/sh\necho 'error: no vocabulary' >&2\nexit 1\n")
    with pytest.raises(SherryError, match="llama-tokenize failed with status 1: error: no vocabulary"):
        runtime.tokenize(path, path, path)
