"""A report in which everything is as it should be."""

from __future__ import annotations

import pytest

from sherry_gguf.parity.findings import Findings, Limits, Step, TokenCheck
from sherry_gguf.parity.scoring import Divergence
from sherry_gguf.weights.compare import WeightCheck

DIVERGENCE = Divergence(
    positions=1020,
    base_perplexity=80.0,
    other_perplexity=80.08,
    perplexity_ratio=1.001,
    perplexity_ratio_se=0.0002,
    kld_mean=0.0005,
    kld_mean_se=0.00001,
    kld_p999=0.004,
    same_top1=0.985,
    same_top1_se=0.002,
    max_logit_difference=0.3,
)


@pytest.fixture
def good_report() -> Findings:
    return Findings(
        model="model",
        gguf="model.gguf",
        text="text",
        ctx_size=512,
        chunks=4,
        weights=WeightCheck(42, 1280, 0, 10, 0, 4.8e-4, None),
        tokens=TokenCheck(2050, 2050, None),
        steps=(Step("8-bit activations", DIVERGENCE), Step("other types", DIVERGENCE)),
        limits=Limits(max_perplexity_change=0.15, max_kld=0.001, min_top1=98),
    )
