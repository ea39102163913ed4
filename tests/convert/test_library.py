"""Types that only ggml's C can write, through the built library."""

from __future__ import annotations

import numpy as np
import pytest
from reading import tensors_of

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.errors import SherryError

pytestmark = [pytest.mark.runtime, pytest.mark.usefixtures("runtime")]


def test_k_quants(tiny_checkpoint, tmp_path, pinned_gguf):
    types = TypeChoice("q4_K", "q6_K", [("ffn_down", "q4_K")])
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=types)
    assert report.verdict is not None
    tensors = tensors_of(report.outfile)
    embedding = Checkpoint(tiny_checkpoint).load("model.embed_tokens.weight").float().numpy()
    for name, type_name, error in (("token_embd.weight", "Q4_K", 0.1), ("output.weight", "Q6_K", 0.03)):
        assert tensors[name].tensor_type.name == type_name
        found = pinned_gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        # 4 and 6 bits of a bell curve: relative errors of 0.07 and 0.02 are what these types are known for
        assert 0 < np.linalg.norm(found - embedding) / np.linalg.norm(embedding) < error
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "Q4_K"


def test_rows_that_do_not_fit_are_refused(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry=sherry_config, hidden_size=384, num_attention_heads=6)
    with pytest.raises(SherryError, match=r"output\.weight: rows of 384 weights are no multiple of 256, .* Q6_K"):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(output="q6_K"))
