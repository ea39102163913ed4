"""What users see of weights being rearranged at load: nothing, but for the speed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sherry_gguf.checkpoint import Source
from sherry_gguf.convert import convert
from sherry_gguf.weights.granularity import Granularity

pytestmark = pytest.mark.runtime

# Upstream's attention has other kernels for one token than for many, which round differently; it is kept from them.
SAME_ATTENTION = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")

# ways to multiply: tiles or rows of the file, by how many tokens come at once
PATHS = {
    "tiles, panels of 8": [],
    "tiles, 1 token": ["--ubatch-size", 1],
    "tiles, 4 tokens": ["--ubatch-size", 4],
    "tiles, 13 tokens": ["--ubatch-size", 13],
    "rows": ["--no-repack"],
    "rows, 1 token": ["--no-repack", "--ubatch-size", 1],
    "tiles of a file that is not mapped": ["--load-mode", "none"],
    "rows of a file that is not mapped": ["--load-mode", "none", "--no-repack"],
}


def run(*command):
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def files(pinned_gguf, tiny_checkpoint, sherry_gguf_file, tmp_path_factory) -> dict[str, Path]:
    """The shipped checkpoint's latents with a scale per 128 weights, as trained, and per 32."""
    folder = tmp_path_factory.mktemp("g32")
    source = Source(tiny_checkpoint, granularity=Granularity("per_group", 32))
    return {"SHERRY": sherry_gguf_file, "SHERRY_G32": convert(source, folder / "g32.gguf").outfile}


@pytest.mark.parametrize(("type_name", "chunks"), [("SHERRY", 20), ("SHERRY_G32", 4)])
def test_every_path_has_the_same_perplexity(runtime, files, type_name, chunks, heldout_text):
    perplexity = {}
    for name, options in PATHS.items():
        fixed = ("-m", files[type_name], "-f", heldout_text, "--chunks", chunks, "-c", 512, "-v")
        log = run(runtime.program("llama-perplexity"), *fixed, *SAME_ATTENTION, *options)
        final = re.search(rf"\[{chunks}\]([\d.]+),", log)
        assert ("CPU_SHERRY model buffer" in log) == name.startswith("tiles")
        assert ("CPU_Mapped model buffer" in log) == ("--load-mode" not in options)
        assert final is not None, log[-2000:]
        perplexity[name] = float(final[1])
    print(perplexity)
    # our kernels add the blocks of a row up in one order, in tiles and in rows, however many tokens come at once
    assert perplexity["rows"] == perplexity["tiles, panels of 8"]
    assert perplexity["rows, 1 token"] == perplexity["tiles, 1 token"]
    assert perplexity["tiles of a file that is not mapped"] == perplexity["tiles, panels of 8"]
    assert perplexity["rows of a file that is not mapped"] == perplexity["rows"]
    for value in perplexity.values():  # upstream's other products do not
        assert abs(value / perplexity["rows"] - 1) < 5e-4, perplexity


@pytest.fixture(scope="module")
def large_model(runtime, repository, tmp_path_factory) -> Path:
    """Random weights in the shapes of a 0.7B model: 24 layers, 111 MiB in tiles."""
    folder = tmp_path_factory.mktemp("large")
    bench = [sys.executable, repository / "scripts/bench_llama.py", "--shape", "0.7b", "--types", "SHERRY"]
    run(*bench, "--tests", "tg1", "--rounds", 1, "--keep", folder)
    return next(folder.glob("*.gguf"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_holds_each_weight_once(runtime, large_model, tmp_path):
    """Anonymous memory after loading is what llama.cpp says that it allocates; the rest is the file, mapped."""
    log = tmp_path / "log"
    command = [runtime.program("llama-server"), "-m", large_model, "-c", 512, "--port", 0, "-v"]
    with log.open("w") as out:
        server = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while "server: listening on" not in log.read_text(errors="replace"):
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        status = Path(f"/proc/{server.pid}/status").read_text()
    finally:
        server.kill()
        server.wait()
    text = log.read_text(errors="replace")
    loaded = text[text.rindex("loading model tensors") :]
    sizes = {name: float(size) for name, size in re.findall(r"(\S+ \S+) buffer size = +([\d.]+) MiB", loaded)}
    tiles = sizes.pop("CPU_SHERRY model")
    mapped = sizes.pop("CPU_Mapped model")
    anonymous = int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024
    print(f"anonymous {anonymous:.1f} MiB; tiles {tiles}, mapped {mapped}, other buffers {sizes}")
    assert tiles > 80
    assert anonymous < 1.1 * (tiles + sum(sizes.values()))
