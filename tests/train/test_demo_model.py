"""The demo model: what its README says of it."""

from __future__ import annotations

import pytest

from sherry_gguf.train.directory import load_sherry
from sherry_gguf.train.evaluate import perplexity


def test_demo_model(repository, heldout_text):
    directory = repository / "tests/data/sotu-sherry"
    assert sum(file.stat().st_size for file in directory.iterdir()) < 12e6
    model, tokenizer = load_sherry(directory)
    # on another machine fp32 sums have another order
    assert perplexity(model, tokenizer, [heldout_text], 512) == pytest.approx(49.8272, rel=1e-4)
