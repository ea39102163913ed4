"""FSDP: two processes over gloo that hold half of each parameter, gradient and optimizer state."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

# Adam with an epsilon far above every gradient is a momentum, and has no quotients that rounding errors could turn
SMOOTH = {"save_dtype": "float32", "adam_epsilon": 1.0, "learning_rate": 0.1, "seed": 7, "measure_steps": 1}
SMOOTH |= {"arenas_max": 1.0, "lr_scheduler_type": "constant_with_warmup"}
SHARDED = json.dumps({"state_dict_type": "SHARDED_STATE_DICT"})


@pytest.fixture
def two(untrained, heldout_text, tmp_path):
    """Train with two processes into tmp_path / name; batches are those of ``train``, half of each for each process."""

    def start(name, *flags, **settings):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "sherry_gguf.train"]
        command += ["--model", str(untrained), "--data", str(heldout_text), "--out", str(tmp_path / name)]
        command += ["--ctx-size", "64", "--per-device-train-batch-size", "2", "--bf16", "false", "--use-cpu", "true"]
        command += ["--disable-tqdm", "true", "--fsdp", "full_shard auto_wrap", *flags]
        command += [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path / name

    return start


def weights(directory):
    return load_file(directory / "model.safetensors")


def measures(directory):
    return [json.loads(line) for line in (directory / "measures.jsonl").read_text().splitlines()]


def test_two_halves_are_one_whole(train, two, model_of, tmp_path, pinned_gguf):
    """The weights of one process, a model that converts, and a checkpoint of halves from which a training goes on."""
    from sherry_gguf.convert import convert

    _, one = train("one", max_steps=4, **SMOOTH)
    saving = {**SMOOTH, "max_steps": 4, "save_steps": 2, "fsdp_config": SHARDED}
    halves = two("halves", **saving)
    expected, start = weights(one.out), model_of(7).state_dict()
    found = weights(halves)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        # Gradients are summed in another order. A norm near 1 went 1.5e-4 in steps of float32, 6e-8: 4e-4 of its way.
        moved, apart = (tensor - start[name]).abs().max(), (tensor - expected[name]).abs().max()
        assert apart < 1e-3 * moved, name
    for line, measured in zip(measures(one.out), measures(halves), strict=True):
        assert measured["effective_rank"] == pytest.approx(line["effective_rank"], rel=1e-3)
        assert sum(measured["magnitudes"]) == sum(line["magnitudes"])
    assert "verified: 14 SHERRY tensors" in str(convert(halves, tmp_path / "model.gguf").verdict)

    # Adam has two moments of each weight; a file's metadata are below a tenth of it
    parts = sorted((halves / "checkpoint-2" / "optimizer_0").glob("*.distcp"))
    whole = sum(tensor.nbytes for tensor in found.values())
    assert len(parts) == 2
    assert all(whole <= part.stat().st_size < 1.1 * whole for part in parts)
    (tmp_path / "resumed").mkdir()
    (halves / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    resumed = weights(two("resumed", "--resume-from-checkpoint", "true", **saving))
    for name, tensor in found.items():
        assert torch.equal(tensor, resumed[name]), name
