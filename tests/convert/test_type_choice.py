"""Types as a user names them, and which tensor gets which."""

from __future__ import annotations

import pytest

from sherry_gguf.convert.type_choice import TypeChoice, has_choice, outtypes, parse_outtype, parse_override, parse_type
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.table import tensor_types


def test_names_are_those_of_llama_quantize():
    assert [parse_type(t) for t in ("F16", "Q8_0", "q4_k", "Q6_K", "bf16")] == ["f16", "q8_0", "q4_K", "q6_K", "bf16"]
    assert parse_override("blk.0=.*=q8_0") == ("blk.0=.*", "q8_0")


@pytest.mark.parametrize("text", ["f33", "", "sherry"])
def test_unknown_types(text):
    with pytest.raises(SherryError, match="no type this converter writes"):
        parse_type(text)


def test_types_of_sherry_layers():
    assert outtypes() == ("stq1_0", "sherry", "tq1_0", "sherry_g32", "tq2_0", "q2_0", "sherry_2p", "q4_0", "auto")
    assert [parse_outtype(t) for t in ("Q2_0", "AUTO")] == ["q2_0", "auto"]
    assert (TypeChoice().asked, TypeChoice().candidates) == (SHERRY, (SHERRY, SHERRY_G32))
    assert (TypeChoice(outtype="sherry").asked, TypeChoice(outtype="sherry").candidates) == (SHERRY, (SHERRY,))
    assert (TypeChoice(outtype="auto").asked, TypeChoice(outtype="auto").candidates) == (None, tensor_types())
    with pytest.raises(SherryError, match="'q4_K' is no type for Sherry layers; known are stq1_0, sherry, tq1_0"):
        parse_outtype("q4_K")


@pytest.mark.parametrize("text", ["ffn_down", "=f16", "(=f16", "x=f33"])
def test_overrides_that_are_none(text):
    with pytest.raises(SherryError):
        parse_override(text)


def test_defaults():
    choice = TypeChoice()
    assert choice.for_tensor("token_embd.weight", is_sherry=False) == "q8_0"
    assert choice.for_tensor("output.weight", is_sherry=False) == "q8_0"
    assert choice.for_tensor("blk.0.ffn_up.weight", is_sherry=True) is SHERRY
    assert choice.for_tensor("blk.0.ffn_gate_inp.weight", is_sherry=False) is None
    assert not choice.separate_output()
    assert choice.library_types() == set()


def test_overrides_and_their_order():
    choice = TypeChoice("f16", None, [("ffn_down", "q4_K"), ("ffn", "f32"), (".*", "bf16")])
    assert choice.for_tensor("token_embd.weight", is_sherry=False) == "f16"
    assert choice.for_tensor("output.weight", is_sherry=False) == "bf16"
    assert choice.for_tensor("blk.0.ffn_down.weight", is_sherry=True) == "q4_K"
    assert choice.for_tensor("blk.0.ffn_up.weight", is_sherry=True) == "f32"
    assert choice.library_types() == {"q4_K"}


def test_an_override_that_matches_nothing_is_refused():
    choice = TypeChoice(overrides=[("ffn_up", "f16"), ("ffn_dwn", "f16")])
    with pytest.raises(SherryError, match=r"'ffn_dwn' matches no tensor; there are names like blk\.0\.ffn_up"):
        choice.require_matches(["blk.0.ffn_up.weight", "token_embd.weight"])


@pytest.mark.parametrize(
    ("name", "n_dims", "expected"),
    [
        ("blk.0.ffn_up_exps.weight", 3, True),
        ("token_embd.weight", 2, True),
        ("blk.0.ffn_gate_inp.weight", 2, False),
        ("blk.0.attn_q_norm.weight", 2, False),
        ("blk.0.attn_q.bias", 1, False),
        ("blk.0.ssm_conv1d.weight", 2, False),
    ],
)
def test_routers_and_norms_have_no_choice(name, n_dims, expected):
    assert has_choice(name, n_dims) is expected


def test_a_tied_embedding_is_doubled_only_for_another_type():
    assert not TypeChoice(output="q8_0").separate_output()
    assert TypeChoice(output="q6_K").separate_output()
    assert not TypeChoice("f16", "f16").separate_output()
