"""The reference in PyTorch against a trained forward written independently, and against recorded logits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer import trained_forward
from transformers import AutoModelForCausalLM

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.parity import reference


def with_granularity(source, target, granularity):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config["granularity"] = granularity
    (target / "config.json").write_text(json.dumps(config))
    return Checkpoint(target)


@pytest.mark.parametrize("granularity", ["per_group", "per_channel", "per_tensor"])
def test_layers_hold_the_trained_forward(tiny_checkpoint, tmp_path, granularity):
    checkpoint = with_granularity(tiny_checkpoint, tmp_path / "model", granularity)
    plan = make_plan(checkpoint)
    assert len(plan.layers) == 6 * 7
    for name, found in reference.trained_weights(checkpoint, plan).items():
        stored = checkpoint.load(name).float()
        if name not in plan.layers:
            assert torch.equal(found, stored), name
            continue
        length = {"per_group": 128, "per_channel": stored.shape[1], "per_tensor": stored.numel()}[granularity]
        wanted = trained_forward(stored, (stored.numel() // length, length))
        assert torch.equal(found.sign(), wanted.sign().float()), name
        # alpha is summed in float64 in another order, then rounded once to float32
        torch.testing.assert_close(found.double(), wanted, rtol=2.0**-23, atol=0)


def test_recorded_logits(tiny_checkpoint):
    """The reference numbers of tests/data/README.md come from the same forward, run elsewhere."""
    checkpoint = Checkpoint(tiny_checkpoint)
    recorded = np.load(tiny_checkpoint.parent / "reference_logits.npz")
    logits = reference.load(checkpoint, make_plan(checkpoint))
    for tokens, wanted in zip(recorded["tokens"], recorded["logits"], strict=True):
        found = logits(tokens.astype(np.int32))[::8]
        # fp32 sums of 256 to 768 terms in another order: 1.2e-5 was seen on logits up to 20
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_experts_are_replaced_too(random_checkpoint, sherry_config):
    """transformers stacks experts into 3-D parameters: compare with the forward applied to those by hand."""
    directory = random_checkpoint("Qwen3Moe", sherry=sherry_config)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                rows = parameter.reshape(-1, parameter.shape[-1])
                parameter.copy_(trained_forward(rows, (rows.numel() // 128, 128)).reshape(parameter.shape))
    tokens = np.arange(7, 57, dtype=np.int32)
    with torch.inference_mode():
        wanted = model.eval()(torch.from_numpy(tokens).long()[None]).logits[0].numpy()

    checkpoint = Checkpoint(directory)
    plan = make_plan(checkpoint)
    assert len(plan.layers) == 2 * (4 + 3 * 4)
    # the weights may differ by an ulp of float32, as above; logits are of order 1
    np.testing.assert_allclose(reference.load(checkpoint, plan)(tokens), wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_without_some_tensor_is_refused(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(SherryError, match=r"1 tensors of the model are missing, as model\.norm\.weight"):
        reference.load(checkpoint, make_plan(checkpoint))


def test_a_model_that_transformers_does_not_know_is_refused(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "marvel"}))
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(
        SherryError, match=r"no model of this config\.json; transformers stopped with ValueError: .*marvel"
    ):
        reference.load(checkpoint, make_plan(checkpoint))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "marvel"}, r"no model of this config\.json; transformers stopped with KeyError: 'marvel'"),
        ({"num_hidden_layers": "six"}, r"no model of this config\.json; transformers stopped with \w+: .*six"),
        ({"intermediate_size": 512}, r"does not fit its config\.json; transformers stopped with RuntimeError: "),
    ],
)
def test_what_transformers_raises_is_one_line(change, words, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(SherryError, match=words) as error:
        reference.load(checkpoint, make_plan(checkpoint))
    assert "\n" not in str(error.value)


def test_a_token_beyond_the_vocabulary_is_one_line(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint)
    logits = reference.load(checkpoint, make_plan(checkpoint))
    with pytest.raises(SherryError, match="cannot be run; transformers stopped with IndexError"):
        logits(np.array([1, 2**20], dtype=np.int32))


def test_a_checkpoint_without_tokenizer_is_refused(tiny_checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_checkpoint / name, tmp_path)
    with pytest.raises(SherryError, match="no tokenizer; transformers stopped with"):
        reference.tokenize(Checkpoint(tmp_path), "We the people")


def test_bos_is_seen_where_texts_begin_with_it(tiny_checkpoint):
    text = reference.tokenize(Checkpoint(tiny_checkpoint), "We the people")
    assert text.bos == 1
    assert text.tokens[0] == 1
    assert text.tokens.dtype == np.int32
