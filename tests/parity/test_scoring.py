"""The figures against PyTorch's functions and against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sherry_gguf.parity import scoring

N, VOCAB = 200, 37


@pytest.fixture
def logits():
    rng = np.random.default_rng(5)
    base = rng.normal(scale=3, size=(N, VOCAB)).astype(np.float32)
    other = base + rng.normal(scale=0.2, size=base.shape).astype(np.float32)
    return base, other, rng.integers(0, VOCAB, size=N, dtype=np.int32)


def compare(base, other, targets):
    meter = scoring.Meter()
    meter.add(base, other, targets)
    return meter.result()


def test_equals_pytorch(logits):
    base, other, targets = logits
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (base, other))
    target = torch.from_numpy(targets).long()
    kld = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    found = compare(*logits)

    assert found.positions == N
    # float64 on both sides: what is left is the order of summation
    assert found.base_perplexity == pytest.approx(functional.nll_loss(p, target).exp().item(), rel=1e-12)
    assert found.other_perplexity == pytest.approx(functional.nll_loss(q, target).exp().item(), rel=1e-12)
    assert found.kld_mean == pytest.approx(kld.mean().item(), rel=1e-9)
    assert found.kld_mean_se == pytest.approx(kld.std().item() / math.sqrt(N), rel=1e-9)
    assert found.kld_p999 == pytest.approx(kld.quantile(0.999).item(), rel=1e-9)
    assert found.same_top1 == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert found.max_logit_difference == np.abs(other.astype(np.float64) - base).max()
    assert found.perplexity_ratio == pytest.approx(found.other_perplexity / found.base_perplexity, rel=1e-12)
    assert found.perplexity_change == pytest.approx(100 * (found.perplexity_ratio - 1))


def test_known_answers():
    """Certain against a coin toss over two tokens: KL = ln 2, perplexities 1 and 2."""
    base = np.array([[0, -1e9], [-1e9, 0]], dtype=np.float32)
    other = np.zeros((2, 2), dtype=np.float32)
    found = compare(base, other, np.array([0, 1], dtype=np.int32))
    assert (found.base_perplexity, found.other_perplexity) == (1.0, pytest.approx(2.0))
    assert found.kld_mean == pytest.approx(math.log(2))
    assert found.same_top1 == 0.5  # of two equal logits the first counts as the top
    assert found.max_logit_difference == 1e9
    assert found.perplexity_ratio_se == 0


def test_equal_logits_are_exactly_equal(logits):
    base, _, targets = logits
    found = compare(base, base, targets)
    assert (found.kld_mean, found.kld_p999, found.max_logit_difference) == (0, 0, 0)
    assert (found.perplexity_ratio, found.same_top1) == (1, 1)


def test_a_constant_added_to_logits_changes_no_probability(logits):
    base, _, targets = logits
    found = compare(base, base + np.float32(4), targets)
    assert found.kld_mean == pytest.approx(0, abs=1e-12)  # float32 rounding of base + 4, squared
    assert found.max_logit_difference == pytest.approx(4, rel=1e-6)


def test_chunks_and_slices_change_nothing(logits, monkeypatch):
    base, other, targets = logits
    whole = compare(*logits)
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 8 * VOCAB * 7)
    meter = scoring.Meter()
    for part in (slice(0, 50), slice(50, 51), slice(51, N)):
        meter.add(base[part], other[part], targets[part])
    assert meter.result() == whole


def test_not_a_number_reaches_every_figure(logits):
    base, other, targets = logits
    other[3, 5] = np.nan
    found = compare(base, other, targets)
    assert math.isnan(found.other_perplexity)
    assert math.isnan(found.kld_mean)
    assert math.isnan(found.max_logit_difference)


@pytest.mark.filterwarnings("error")
def test_a_broken_runtime_is_measured_without_an_error(logits):
    base, _, targets = logits
    certain_of_another = np.zeros_like(base)
    certain_of_another[np.arange(N), (targets + 1) % VOCAB] = 1e30
    assert compare(base, certain_of_another, targets).other_perplexity == math.inf
    assert math.isnan(compare(base, np.full_like(base, np.inf), targets).kld_mean)


def test_cut_puts_bos_first_and_drops_the_rest():
    tokens = np.arange(10, 33, dtype=np.int32)
    chunks = scoring.cut(tokens, 5, bos=1)
    assert chunks.tolist()[0] == [1, 11, 12, 13, 14]
    assert chunks.tolist()[3] == [1, 26, 27, 28, 29]
    assert len(chunks) == 4
    assert tokens[0] == 10
    assert scoring.cut(tokens, 5, bos=None, limit=2).tolist() == [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]


def test_the_second_half_counts():
    assert scoring.first_scored(512) == 256
    assert scoring.first_scored(7) == 3
