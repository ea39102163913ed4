"""Files that are changed at random are read or refused in one line, and what is written reads as what was given."""

from __future__ import annotations

from collections import Counter

import pytest
from fuzz import fuzz

SEED = 20261127

# kind of file -> mutants, and how often each action must have succeeded and refused for the draw to mean something
DRAWS = {
    "gguf": (2000, {"header": 400, "inspect": 300, "retag": 50, "requantize": 200}),
    "checkpoint": (1000, {"load": 150}),
    "convert": (300, {"convert": 40}),
}


@pytest.mark.usefixtures("pinned_gguf")
@pytest.mark.parametrize("of", [*list(DRAWS)[:2], pytest.param("convert", marks=pytest.mark.slow)])
def test_mutants(of, tmp_path):
    mutants, least = DRAWS[of]
    counts: Counter[str] = Counter()
    assert not [str(finding) for finding in fuzz(of, SEED, range(mutants), tmp_path, counts)]
    for action, read in least.items():
        assert counts[f"{action}, read"] >= read
        assert counts[f"{action}, refused"] >= mutants // 2
