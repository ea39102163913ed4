"""What passes, what fails and with which words, and the two ways to show it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from sherry_gguf.parity.measure import Divergence
from sherry_gguf.parity.report import Limits, Report, Step, TokenCheck
from sherry_gguf.weight_check import WeightCheck

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
GOOD = Report(
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


def with_total(**change):
    return replace(GOOD, steps=(GOOD.steps[0], Step("other types", replace(DIVERGENCE, **change))))


def test_all_limits_hold():
    assert GOOD.failures() == []
    assert GOOD.to_json()["ok"] is True


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("total", {"perplexity_ratio": 1.0016}, r"perplexity changes by \+0\.1600%, more than 0\.15%"),
        ("total", {"perplexity_ratio": 0.9984}, r"perplexity changes by -0\.1600%, more than 0\.15%"),
        ("total", {"perplexity_ratio": float("nan")}, r"perplexity changes by \+nan%"),
        ("total", {"kld_mean": 0.0011}, r"mean KL divergence 0\.001100 is above 0\.001"),
        ("total", {"same_top1": 0.979}, r"the same top token at 97\.90% of the positions, less than 98%"),
        ("weights", {"tensors": 0}, r"no SHERRY tensor"),
        ("weights", {"wrong_weights": 3, "first_wrong": "x, row 2"}, r"3 of 1,280 weights .* the first in x, row 2"),
        ("weights", {"wrong_scales": 1, "first_wrong": "x, row 2"}, r"1 of 10 scales .* the first in x, row 2"),
        ("tokens", {"first_difference": 7}, r"first differ at token 7$"),
    ],
)
def test_each_limit_fails_by_itself(part, change, words):
    bad = with_total(**change) if part == "total" else replace(GOOD, **{part: replace(getattr(GOOD, part), **change)})
    (line,) = bad.failures()
    assert re.search(words, line)
    assert bad.to_json()["ok"] is False


def test_json_has_no_nan():
    bad = with_total(kld_mean=float("nan"), max_logit_difference=float("inf"))
    text = json.dumps(bad.to_json(), allow_nan=False)
    assert json.loads(text)["total"]["kld_mean"] is None
    assert json.loads(text)["total"]["perplexity_ratio"] == 1.001
    assert json.loads(text)["steps"][0] == {
        "cause": "8-bit activations",
        "divergence": GOOD.to_json()["total"] | {"kld_mean": 0.0005, "max_logit_difference": 0.3},
    }


def test_the_table_fits_80_columns_and_is_plain():
    file = io.StringIO()
    GOOD.show(Console(file=file, width=80, soft_wrap=True))
    text = file.getvalue()
    assert "\x1b" not in text
    tables = text.splitlines()[1:]
    assert all(len(line) <= 80 for line in tables)
    (step,) = (line for line in tables if line.startswith("+ 8-bit activations"))
    assert step.split()[3:] == ["80.0800", "+0.1000", "5.0e-04", "4.0e-03", "98.50", "0.3"]
    assert tables[-1] == "PASSED: every limit holds"


@pytest.mark.parametrize(
    ("in_torch", "in_gguf", "first"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 2, 3], 2)],
)
def test_tokens_differ_first_where(in_torch, in_gguf, first):
    check = TokenCheck.of(np.array(in_torch, dtype=np.int32), np.array(in_gguf, dtype=np.int32))
    assert check == TokenCheck(len(in_torch), len(in_gguf), first)
