"""The schedule of lambda, and that it counts optimizer steps."""

from __future__ import annotations

import json
import math

import pytest

from sherry_gguf.train.arenas import last_step, residual_weight


def logged(directory, name):
    """What was logged under that name, in each step."""
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_values_by_hand():
    """100 steps: a line up to step 10, half of a cosine's way at step 55, nothing in the last."""
    expected = {1: 0.1, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0, 101: 0.0}
    for step, weight in expected.items():
        assert residual_weight(step, 100, end=1.0) == pytest.approx(weight, abs=1e-12)
    assert residual_weight(32.5, 100, end=1.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_it_ends_at_zero_exactly_and_never_leaves_its_range():
    for total in (1, 2, 3, 7, 10, 1000):
        weights = [residual_weight(step, total, 0.3, end=1.0) for step in range(1, total + 1)]
        assert weights[-1] == 0.0
        assert all(0 <= weight <= 0.3 for weight in weights)
        peak = weights.index(max(weights))
        assert weights[: peak + 1] == sorted(weights[: peak + 1])
        assert weights[peak:] == sorted(weights[peak:], reverse=True)


def test_warmup_of_another_length():
    assert residual_weight(50, 100, warmup=0.5, end=1.0) == 1.0
    assert residual_weight(25, 100, warmup=0.5, end=1.0) == 0.5
    assert residual_weight(1, 100, warmup=0.0) == 1.0  # one step is the shortest


def test_an_earlier_end_by_hand():
    """100 steps of which the first half has a residual: half of a cosine's way at step 30, nothing from step 50 on."""
    assert last_step(100, 0.5) == 50
    expected = {1: 0.1, 10: 1.0, 30: 0.5, 49: (1 + math.cos(math.pi * 39 / 40)) / 2}
    for step, weight in expected.items():
        assert residual_weight(step, 100, end=0.5) == pytest.approx(weight, abs=1e-12)
    assert [residual_weight(step, 100, end=0.5) for step in range(50, 102)] == [0.0] * 52


def test_an_end_within_the_warmup_cuts_it_off():
    assert [residual_weight(step, 100, end=0.05) for step in (3, 4, 5, 6, 100)] == [0.3, 0.4, 0, 0, 0]
    assert [residual_weight(step, 100, end=0.0) for step in (1, 2, 100)] == [0, 0, 0]


def test_the_rate_falls_where_lambda_has_ended(train):
    """Both are seen in the log of ten steps: the rate rises for one, stays, and falls in the steps without lambda."""
    settings = {"arenas_max": 1.0, "arenas_end": 0.6, "lr_scheduler_type": "warmup_stable_decay", "learning_rate": 1e-3}
    _, options = train(max_steps=10, logging_steps=1, **settings)
    assert [weight > 0 for weight in logged(options.out, "lambda")] == [True] * 5 + [False] * 5
    # the step that is made at step n of the log has the rate of n - 1 steps done
    rates = [rate / 1e-3 for rate in logged(options.out, "learning_rate")]
    falling = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(1, 4)]
    assert rates == pytest.approx([0, *[1] * 6, *falling], abs=1e-6)


def test_a_decay_that_is_asked_for_is_kept(train):
    settings = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}
    _, options = train(max_steps=6, arenas_end=0.5, learning_rate=1e-3, logging_steps=1, **settings)
    assert [rate / 1e-3 for rate in logged(options.out, "learning_rate")] == pytest.approx([0, 1, 1, 1, 1, 0.5])


def test_accumulated_batches_are_no_steps(train):
    """Every step is logged with its lambda: 10 optimizer steps of 3 batches each."""
    _, options = train(
        max_steps=10, gradient_accumulation_steps=3, logging_steps=1, arenas_max=1.0, arenas_warmup=0.2, arenas_end=0.8
    )
    expected = [residual_weight(step, 10, warmup=0.2, end=0.8) for step in range(1, 11)]
    assert logged(options.out, "lambda") == expected
    assert expected[0] > 0


def test_by_default_nothing_is_added(train):
    _, options = train(max_steps=2, logging_steps=1)
    assert not logged(options.out, "lambda")
