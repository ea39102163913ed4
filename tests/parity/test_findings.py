"""What passes, what fails and with which words, and the two ways to show it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from sherry_gguf.parity.findings import TokenCheck
from sherry_gguf.weights.compare import WeightCheck


def with_total(report, **change):
    first, last = report.steps
    return replace(report, steps=(first, replace(last, divergence=replace(last.divergence, **change))))


def test_all_limits_hold(good_report):
    assert good_report.failures() == []
    assert good_report.to_json()["ok"] is True


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("total", {"perplexity_ratio": 1.0016}, r"perplexity changes by \+0\.1600%, more than 0\.15%"),
        ("total", {"perplexity_ratio": 0.9984}, r"perplexity changes by -0\.1600%, more than 0\.15%"),
        ("total", {"perplexity_ratio": float("nan")}, r"perplexity changes by \+nan%"),
        ("total", {"kld_mean": 0.0011}, r"mean KL divergence 0\.001100 is above 0\.001"),
        ("total", {"same_top1": 0.979}, r"the same top token at 97\.90% of the positions, less than 98%"),
        ("weights", {"wrong_weights": 3, "first_wrong": "x, row 2"}, r"3 of 1,280 weights .* the first in x, row 2"),
        ("weights", {"wrong_scales": 1, "first_wrong": "x, row 2"}, r"1 of 10 scales .* the first in x, row 2"),
        ("tokens", {"first_difference": 7}, r"first differ at token 7$"),
    ],
)
def test_each_limit_fails_by_itself(part, change, words, good_report):
    bad = (
        with_total(good_report, **change)
        if part == "total"
        else replace(good_report, **{part: replace(getattr(good_report, part), **change)})
    )
    (line,) = bad.failures()
    assert re.search(words, line)
    assert bad.to_json()["ok"] is False


def test_notes_are_no_failures(good_report):
    noted = replace(good_report, weights=WeightCheck(), lossy_layers=3)
    file = io.StringIO()
    noted.show(Console(file=file, width=80, soft_wrap=True, markup=False))
    *_, no_tensor, lossy, verdict = file.getvalue().splitlines()
    assert no_tensor == "note: the file has no SHERRY tensor; nothing to compare bit by bit"
    assert lossy.endswith("3 layers are changed by quantizing them")
    assert verdict == "PASSED: every limit holds"
    assert noted.to_json()["ok"] is True
    assert [f"note: {line}" for line in noted.to_json()["notes"]] == [no_tensor, lossy]
    assert good_report.notes() == []


def test_json_has_no_nan(good_report):
    bad = with_total(good_report, kld_mean=float("nan"), max_logit_difference=float("inf"))
    text = json.dumps(bad.to_json(), allow_nan=False)
    assert json.loads(text)["total"]["kld_mean"] is None
    assert json.loads(text)["total"]["perplexity_ratio"] == 1.001
    assert json.loads(text)["steps"][0] == {
        "cause": "8-bit activations",
        "divergence": good_report.to_json()["total"] | {"kld_mean": 0.0005, "max_logit_difference": 0.3},
    }


def test_the_table_fits_80_columns_and_is_plain(good_report):
    file = io.StringIO()
    good_report.show(Console(file=file, width=80, soft_wrap=True, markup=False))
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
