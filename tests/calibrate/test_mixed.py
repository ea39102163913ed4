"""Where a budget of bits goes."""

from __future__ import annotations

import pytest
import torch

from sherry_gguf.calibrate.mixed import alternatives, bits, spend, there_and_back

pytestmark = pytest.mark.usefixtures("pinned_gguf")

OWN = 2.75
STOCK = ("q4_0", "q8_0")  # 4.5 and 8.5 bits


def losses(*of: float) -> dict[str, float]:
    return {f"w{i}": loss for i, loss in enumerate(of)}


def spent(of: dict[str, float], instead: dict[str, tuple[float, float]], budget: float, **sizes: int) -> dict[str, str]:
    tables = {name: dict(zip(STOCK, pair, strict=True)) for name, pair in instead.items()}
    return spend(of, tables, {name: sizes.get(name, 100) for name in of}, OWN, budget)


def test_the_matrix_that_loses_most_comes_first():
    of = losses(0.01, 0.04, 0.02)
    instead = {name: (loss / 10, loss / 10) for name, loss in of.items()}
    assert spent(of, instead, 2.8) == {}  # q4_0 for one of three takes 0.58 bits more
    assert spent(of, instead, 3.34) == {"w1": "q4_0"}
    assert spent(of, instead, 4.0) == {"w1": "q4_0", "w2": "q4_0"}
    assert spent(of, instead, 9) == dict.fromkeys(of, "q4_0")  # 8 bits gain nothing more


def test_a_small_matrix_is_paid_before_a_large_one():
    """Each counts alike; a gain that is twice as large does not pay for ten times as many weights."""
    of = losses(0.02, 0.01)
    instead = {"w0": (0.0, 0.0), "w1": (0.0, 0.0)}
    assert spent(of, instead, 3.0, w0=1000, w1=100) == {"w1": "q4_0"}


def test_more_bits_for_one_that_has_some():
    of = losses(0.04, 0.0001)
    assert spent(of, {"w0": (0.02, 0.0), "w1": (0.0001, 0.0001)}, 6) == {"w0": "q8_0"}


def test_one_that_cannot_have_another_type_keeps_its_planes():
    assert spent(losses(0.5, 0.01), {"w1": (0.0, 0.0)}, 8) == {"w1": "q4_0"}


def test_the_budget_is_kept():
    generator = torch.Generator().manual_seed(0)
    of = losses(*torch.rand(40, generator=generator).tolist())
    sizes = {name: int(n) for name, n in zip(of, torch.randint(1, 1000, (40,), generator=generator), strict=True)}
    instead = {name: (loss / 5, loss / 500) for name, loss in of.items()}
    for budget in (2.76, 3.0, 4.7, 8.5):
        types = spent(of, instead, budget, **sizes)
        total = sum((bits(types[name]) if name in types else OWN) * size for name, size in sizes.items())
        assert total <= budget * sum(sizes.values())
        assert types or budget == 2.76


def test_types_fit_the_rows_and_round():
    weights = torch.randn(4, 96, generator=torch.Generator().manual_seed(1))
    assert alternatives(96) == STOCK
    assert alternatives(512) == ("q4_K", "q6_K")
    coarse, fine = (there_and_back(weights, name) for name in STOCK)
    assert 0.05 < (coarse - weights).norm() / weights.norm() < 0.15
    assert (fine - weights).norm() / weights.norm() < 0.01
