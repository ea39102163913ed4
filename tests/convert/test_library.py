"""Types that only ggml's C can write, through the built library."""

from __future__ import annotations

import numpy as np
import pytest
from reading import tensors_of

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.calibrated import Calibration
from sherry_gguf.errors import SherryError

pytestmark = [pytest.mark.runtime, pytest.mark.usefixtures("runtime")]


@pytest.mark.parametrize(("embedding", "output"), [("q4_K", "q6_K"), ("q6_K", "q5_K")])
def test_k_quants(tiny_checkpoint, tmp_path, pinned_gguf, embedding, output):
    types = TypeChoice(embedding, output, [("ffn_down", "q4_K")])
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=types)
    assert report.verdict is not None
    tensors = tensors_of(report.outfile)
    wanted = Checkpoint(tiny_checkpoint).load("model.embed_tokens.weight").float().numpy()
    # 4, 5 and 6 bits of a bell curve: relative errors of 0.07, 0.04 and 0.02 are what these types are known for
    errors = {"q4_K": 0.1, "q5_K": 0.05, "q6_K": 0.03}
    for name, type_name in (("token_embd.weight", embedding), ("output.weight", output)):
        assert tensors[name].tensor_type.name == type_name.upper()
        found = pinned_gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < errors[type_name]
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "Q4_K"


@pytest.mark.usefixtures("pinned_gguf")
def test_a_calibration_with_more_bits_for_some(random_checkpoint, heldout_text, tmp_path):
    directory = random_checkpoint("Llama", hidden_size=256, intermediate_size=512, head_dim=64)
    types, on = TypeChoice(outtype="sherry_2p"), Calibration(heldout_text, tokens=1024, bits=3.5)
    tensors = tensors_of(convert(directory, tmp_path / "x.gguf", types=types, calibration=on).outfile)
    of_layers = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and "norm" not in name]
    kinds = {tensor.tensor_type.name for tensor in of_layers}
    assert {"SHERRY_2P", "Q4_K"} <= kinds <= {"SHERRY_2P", "Q4_K", "Q6_K"}
    n_bytes, weights = (sum(int(getattr(t, of)) for t in of_layers) for of in ("n_bytes", "n_elements"))
    assert 3.4 < 8 * n_bytes / weights <= 3.5


def test_rows_that_do_not_fit_are_refused(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry=sherry_config, hidden_size=384, num_attention_heads=6)
    with pytest.raises(SherryError, match=r"output\.weight: rows of 384 weights are no multiple of 256, .* Q6_K"):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(output="q6_K"))
