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
    import sys, struct, time, pathlib
    import numpy as np
    args = sys.argv[1:]
    n_ctx, first = int(args[args.index("-c") + 1]), int(args[args.index("--from") + 1])
    tokens = np.fromfile(args[-1], dtype=np.int32).reshape(-1, n_ctx)
    out = sys.stdout.buffer
    header = b"SHLOGITS" + struct.pack("=3i", 3, n_ctx - first, len(tokens))
"""
# the logits of token t are t, t + 0.5, t + 1
CHUNK = "out.write((tokens[{0}, first:, None] + np.arange(3, dtype=np.float32) / 2).astype(np.float32).tobytes())"


@pytest.fixture
def program(tmp_path):
    def make(*body):
        path = tmp_path / "program"
        lines = [f"#!{sys.executable}", textwrap.dedent(HEAD), *body]
        path.write_text("\n".join(lines))
        path.chmod(0o755)
        return path

    return make


def stream(path, **options):
    return runtime.stream_logits(path, path, CHUNKS, 1, threads=1, **options)


def test_chunks_arrive_whole_and_in_order(program):
    path = program("out.write(header)", CHUNK.format(0), CHUNK.format(1))
    found = list(stream(path))
    assert [part.shape for part in found] == [(3, N_VOCAB)] * 2
    assert found[0][:, 0].tolist() == [1, 2, 3]
    assert found[1].tolist() == [[5, 5.5, 6], [6, 6.5, 7], [7, 7.5, 8]]


def test_options_reach_the_program(program):
    path = program("assert args[args.index('-t') + 1] == '1' and '--kv-f32' in args; sys.exit('as asked')")
    with pytest.raises(SherryError, match="as asked"):
        list(stream(path, options=("--kv-f32",)))


def test_failure_is_told_in_the_program_s_words(program):
    path = program("print('first line', file=sys.stderr); sys.exit('error: no such model')")
    with pytest.raises(SherryError, match=r"program failed with status 1: first line \| error: no such model$"):
        list(stream(path))


def test_failure_between_chunks(program):
    path = program("out.write(header)", CHUNK.format(0), "out.flush(); sys.exit('decode failed')")
    logits = stream(path)
    assert next(logits).shape == (3, N_VOCAB)
    with pytest.raises(SherryError, match="decode failed"):
        next(logits)


def test_failure_after_the_last_byte(program):
    path = program("out.write(header)", CHUNK.format(0), CHUNK.format(1), "out.flush(); sys.exit(3)")
    with pytest.raises(SherryError, match="status 3: without a word"):
        list(stream(path))


def test_truncated_output_of_a_program_that_says_it_is_well(program):
    path = program("out.write(header)", CHUNK.format(0))
    with pytest.raises(SherryError, match="status 0"):
        list(stream(path))


@pytest.mark.parametrize("header", ['b"SOMETHIN" + header[8:]', 'header[:12] + b"\\1\\0\\0\\0" + header[16:]'])
def test_another_header_is_refused(program, header):
    path = program(f"out.write({header})", CHUNK.format(0), CHUNK.format(1))
    with pytest.raises(SherryError, match="another version"):
        list(stream(path))


def test_leaving_early_ends_the_program(program, tmp_path):
    path = program(
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(__import__('os').getpid()))",
        "out.write(header)",
        CHUNK.format(0),
        "out.flush(); time.sleep(600)",
    )
    logits = stream(path)
    next(logits)
    begin = time.monotonic()
    logits.close()
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
