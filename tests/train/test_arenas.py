"""The schedule of lambda, and that it counts optimizer steps."""

from __future__ import annotations

import math

import pytest

from sherry_gguf.train.arenas import residual_weight


def test_values_by_hand():
    """100 steps: a line up to step 10, half of a cosine's way at step 55, nothing in the last."""
    expected = {1: 0.1, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0, 101: 0.0}
    for step, weight in expected.items():
        assert residual_weight(step, 100) == pytest.approx(weight, abs=1e-12)
    assert residual_weight(32.5, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_it_ends_at_zero_exactly_and_never_leaves_its_range():
    for total in (1, 2, 3, 7, 10, 1000):
        weights = [residual_weight(step, total, 0.3) for step in range(1, total + 1)]
        assert weights[-1] == 0.0
        assert all(0 <= weight <= 0.3 for weight in weights)
        peak = weights.index(max(weights))
        assert weights[: peak + 1] == sorted(weights[: peak + 1])
        assert weights[peak:] == sorted(weights[peak:], reverse=True)


def test_warmup_of_another_length():
    assert residual_weight(50, 100, warmup=0.5) == 1.0
    assert residual_weight(25, 100, warmup=0.5) == 0.5
    assert residual_weight(1, 100, warmup=0.0) == 1.0  # one step is the shortest


def test_accumulated_batches_are_no_steps(train):
    """Every step is logged with its lambda: 10 optimizer steps of 3 batches each."""
    import json

    _, options = train(max_steps=10, gradient_accumulation_steps=3, logging_steps=1)
    history = json.loads((options.out / "trainer_state.json").read_text())["log_history"]
    logged = [entry["lambda"] for entry in history if "lambda" in entry]
    assert logged == [residual_weight(step, 10) for step in range(1, 11)]


def test_without_arenas_nothing_is_added(train):
    import json

    _, options = train(max_steps=2, arenas_max=0.0, logging_steps=1)
    history = json.loads((options.out / "trainer_state.json").read_text())["log_history"]
    assert not [entry for entry in history if "lambda" in entry]
