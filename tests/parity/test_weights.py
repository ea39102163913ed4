"""Which types a file has for Sherry layers that are not SHERRY in it."""

from __future__ import annotations

import re
import subprocess

import pytest
from reading import tensors_of

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.parity import weights


def types_of(gguf, model):
    """GGUF name -> type; that each regex matches its own tensor alone is checked on the way."""
    checkpoint = Checkpoint(model)
    found = {}
    for pattern, type_name in weights.other_types(gguf, checkpoint, make_plan(checkpoint)):
        name = pattern.strip("^$").replace("\\", "")
        assert re.search(pattern, name)
        assert not re.search(pattern, name.replace(".", "x"))
        found[name] = type_name
    return found


def test_a_file_of_sherry_has_none(pinned_gguf, tiny_checkpoint, sherry_gguf_file):
    assert types_of(sherry_gguf_file, tiny_checkpoint) == {}


def test_layers_of_other_types_are_named(pinned_gguf, random_checkpoint, sherry_config, tmp_path):
    """Experts are stacked in the file; embedding, norms and routers are no Sherry layers."""
    model = random_checkpoint("Qwen3Moe", sherry=sherry_config)
    types = TypeChoice(token_embedding="f16", overrides=(("ffn_down_exps", "q8_0"), ("blk.1.attn_k.weight", "bf16")))
    gguf = convert(model, tmp_path / "mixed.gguf", types=types).outfile
    assert types_of(gguf, model) == {
        "blk.0.ffn_down_exps.weight": "q8_0",
        "blk.1.ffn_down_exps.weight": "q8_0",
        "blk.1.attn_k.weight": "bf16",
    }


def test_other_types_that_are_exact_are_checked_and_kept(pinned_gguf, tiny_checkpoint, tmp_path):
    types = TypeChoice("q4_0", None, [("attn_v", "f16")], outtype="q2_0")
    gguf = convert(tiny_checkpoint, tmp_path / "q2_0.gguf", types=types).outfile
    found = types_of(gguf, tiny_checkpoint)
    assert {name for name, type_name in found.items() if type_name == "f16"} == {
        f"blk.{i}.attn_v.weight" for i in range(6)
    }
    assert set(found.values()) == {"q2_0", "f16"}
    checkpoint = Checkpoint(tiny_checkpoint)
    plan = make_plan(checkpoint)
    right = weights.check(gguf, checkpoint, plan)
    assert (right.tensors, right.first_wrong) == (36, None)  # not the embedding, which is Q4_0

    tensor = tensors_of(gguf)["blk.3.ffn_up.weight"]
    content = bytearray(gguf.read_bytes())
    content[tensor.data_offset + tensor.data.shape[1] * 5 + 2] ^= 1
    gguf.write_bytes(content)
    wrong = weights.check(gguf, checkpoint, plan)
    assert (wrong.wrong_weights, wrong.wrong_scales) == (1, 0)
    assert wrong.first_wrong == "blk.3.ffn_up.weight, row 5, group 0 (weights 0..3)"


@pytest.mark.runtime
@pytest.mark.parametrize(("quantized", "wanted"), [("q6_K", "q6_K"), ("q5_0", "f32")])
def test_a_type_that_is_not_written_here_becomes_f32(
    quantized, wanted, runtime, pinned_gguf, random_checkpoint, sherry_config, tmp_path
):
    model = random_checkpoint("Llama", sherry=sherry_config)
    plain = convert(model, tmp_path / "f32.gguf", types=TypeChoice(overrides=((".*", "f32"),))).outfile
    gguf = tmp_path / "quantized.gguf"
    command = [runtime.program("llama-quantize"), "--pure", plain, gguf, quantized]
    subprocess.run(command, check=True, capture_output=True)
    found = types_of(gguf, model)
    assert len(found) == 2 * 7
    assert set(found.values()) == {wanted}
