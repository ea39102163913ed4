"""Models split over RPC workers: what one machine computes, although no process holds all of the weights."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from sherry_gguf.convert import TypeChoice, convert

pytestmark = pytest.mark.runtime

N_VOCAB, CONTEXT, CHUNKS = 4096, 96, 2


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    np.random.default_rng(1).integers(3, N_VOCAB, CHUNKS * CONTEXT).astype(np.int32).tofile(file)
    return file


@contextmanager
def worker(runtime, log):
    """A ggml-rpc-server on a free port of the loopback: yields host:port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [runtime.program("ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_until_it_listens(port, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(30)


def wait_until_it_listens(port, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the worker does not listen: {log.read_text()}")


@pytest.fixture
def workers(runtime, tmp_path):
    with ExitStack() as stack:
        yield [stack.enter_context(worker(runtime, tmp_path / f"worker{i}.log")) for i in range(2)]


def logits(runtime, model, tokens, out, *options):
    """float32[chunks * context, n_vocab], and the log."""
    command = [runtime.program("sherry-logits"), "-m", model, "-c", CONTEXT, "-t", 1, "-v", "-o", out, *options, tokens]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.fromfile(out, dtype=np.float32, offset=16)
    return found.reshape(CHUNKS * CONTEXT, -1), done.stderr


@pytest.mark.parametrize("family", ["HunYuanDenseV1", "HYV4"])
@pytest.mark.parametrize("grid", ["SHERRY", "SHERRY_G32", "STQ1_0"])
def test_two_workers_say_bit_for_bit_what_one_process_says(
    family, grid, runtime, pinned_gguf, published_checkpoint, workers, tokens, tmp_path
):
    """Workers hold weights as the file does, and multiply row by row: as one process with --no-repack."""
    model = published_checkpoint(family, grid)
    gguf = convert(model, tmp_path / "model.gguf", types=TypeChoice(outtype=grid.lower())).outfile
    local, _ = logits(runtime, gguf, tokens, tmp_path / "local", "--no-repack")
    split, log = logits(runtime, gguf, tokens, tmp_path / "split", "--rpc", ",".join(workers))
    for endpoint in workers:
        size = re.search(rf"RPC0\[{re.escape(endpoint)}\] model buffer size = +([\d.]+) MiB", log)
        assert size is not None, log[-4000:]
        assert float(size[1]) > 0
    assert np.array_equal(split, local)


def test_a_worker_that_is_not_there(runtime, sherry_gguf_file, tokens, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{closed.getsockname()[1]}"
        command = [runtime.program("sherry-logits"), "-m", sherry_gguf_file, "-c", "32", "--rpc", endpoint, tokens]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert endpoint in done.stderr
