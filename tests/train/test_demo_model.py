"""A saved model as it is read again, the demo model first: what its README says of it."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from sherry_gguf.errors import SherryError
from sherry_gguf.train.directory import load_sherry
from sherry_gguf.train.evaluate import perplexity


def test_demo_model(repository, heldout_text):
    directory = repository / "tests/data/sotu-sherry"
    assert sum(file.stat().st_size for file in directory.iterdir()) < 12e6
    model, tokenizer = load_sherry(directory)
    # on another machine fp32 sums have another order
    assert perplexity(model, tokenizer, [heldout_text], 512) == pytest.approx(49.9055, rel=1e-4)


def test_weights_that_transformers_does_not_read(tiny_checkpoint, tmp_path):
    """It would draw others at random, without a word."""
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    torch.save(load_file(model / "model.safetensors"), model / "x.pt")
    (model / "model.safetensors").unlink()
    with pytest.raises(SherryError, match=r"weights are not read from x\.pt"):
        load_sherry(model)
