"""Effective rank and the distribution of latents, on matrices whose values are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from sherry_gguf.train.layers import SherryLinear
from sherry_gguf.train.measures import MAGNITUDE_EDGES, effective_rank, magnitudes
from sherry_gguf.weights.granularity import Granularity


def test_effective_rank():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 6))) == pytest.approx(1)
    # two directions of 3 : 1, entropy of (3/4, 1/4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(math.exp(entropy))
    assert math.isnan(effective_rank(torch.zeros(3, 4)))


def test_magnitudes():
    """alpha is the mean of the kept three, (1 + 2 + 3) / 3 = 2, in each group: |w| / alpha is 1/8, 1/2, 1 and 3/2."""
    linear = nn.Linear(128, 3)
    linear.weight.data = torch.tensor([0.25, -1.0, 2.0, -3.0]).repeat(3, 32)
    counts = magnitudes(SherryLinear.of(linear, Granularity()))
    assert counts.sum() == 3 * 128
    lower_edges = {float(edge) for edge in MAGNITUDE_EDGES[:-1][counts > 0]}
    assert sorted(lower_edges) == pytest.approx([0.1, 0.5, 1.0, 1.5])
    linear.weight.data[0, :4] = torch.tensor([0.0, 0.0, 0.0, 1000.0])  # far above: in the last bin
    assert magnitudes(SherryLinear.of(linear, Granularity()))[-1] == 1


def test_a_training_is_measured(train):
    _, options = train(measure_steps=2, max_steps=5, logging_steps=1)
    lines = [json.loads(line) for line in (options.out / "measures.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]
    for line in lines:
        assert len(line["effective_rank"]) >= 8
        # a gradient of [rows, k] from 256 tokens
        assert all(1 <= rank <= 128 for rank in line["effective_rank"].values())
        assert sum(line["magnitudes"]) == 2 * (128 * 128 * 4 + 3 * 128 * 256)
    assert not np.array_equal(lines[0]["magnitudes"], lines[-1]["magnitudes"])
    history = json.loads((options.out / "trainer_state.json").read_text())["log_history"]
    assert next(entry["effective_rank"] for entry in history if "effective_rank" in entry) == pytest.approx(
        np.mean(list(lines[0]["effective_rank"].values()))
    )


def test_a_resumed_training_is_measured_once(train):
    """The line of step 4 was written before the run was stopped, and is written anew from the checkpoint of step 3."""
    settings = {"measure_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    _, options = train("stopped", **settings)
    train("stopped", **settings, resume_from_checkpoint=str(options.out / "checkpoint-3"))
    lines = (options.out / "measures.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]
