"""The benches run, and check before they time. What they measure is not tested: it lives in docs/evidence.md."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(repository, script, *arguments):
    command = [sys.executable, repository / "scripts" / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_codec(repository):
    output = run(repository, "bench_codec.py", "--rows", 64, "--columns", 512, "--rounds", 1)
    assert "quantize and pack" in output
    assert "unpack to float32" in output


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_vec_dot(repository, tmp_path):
    figures = tmp_path / "figures.json"
    arguments = ["--types", "tq2_0", "--samples", 2, "--rows", 8, "--threads", 2, "--json", figures]
    assert "tq2_0" in run(repository, "bench_vec_dot.py", *arguments)
    rates = json.loads(figures.read_text())
    assert set(rates) == {"sherry", "tq2_0"}
    assert all(rate["best"] >= rate["median"] > 0 for rate in rates.values())
