"""Regridded files in llama.cpp: the logits of the checkpoint, from weights in another order."""

from __future__ import annotations

import pytest

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.regridded import is_regridded
from sherry_gguf.parity import reference, scoring
from sherry_gguf.parity.compare import parity
from sherry_gguf.parity.findings import Limits
from sherry_gguf.parity.runtime import open_logits

pytestmark = [pytest.mark.runtime, pytest.mark.usefixtures("pinned_gguf")]

MODELS = ("llama", "llama-biases", "qwen2", "qwen3")
F32 = TypeChoice(outtype="stq1_0", overrides=((".*", "f32"),))


def compare(runtime, directory, one, other, text, *options):
    """The logits of two files in llama.cpp: 4 chunks of 256 tokens, of which the second halves count."""
    tokens = reference.tokenize(Checkpoint(directory), text.read_text(encoding="utf-8"))
    chunks = scoring.cut(tokens.tokens, 256, tokens.bos, 4)
    meter = scoring.Meter()
    program = runtime.program("sherry-logits")
    with (
        open_logits(program, one, 256, 128, threads=2, options=options) as before,
        open_logits(program, other, 256, 128, threads=2, options=options) as after,
    ):
        for chunk in chunks:
            meter.add(before(chunk)[:-1], after(chunk)[:-1], chunk[129:])
    return meter.result()


@pytest.mark.parametrize("model", MODELS)
def test_f32_twins_say_the_same(model, runtime, trained_model, heldout_text, tmp_path):
    """One in the checkpoint's order and one regridded, both in llama.cpp."""
    directory = trained_model(model)
    plain = convert(directory, tmp_path / "plain.gguf", types=TypeChoice(overrides=F32.overrides)).outfile
    twin = convert(directory, tmp_path / "twin.gguf", types=F32, regrid="exact").outfile
    assert (is_regridded(plain), is_regridded(twin)) == (False, True)
    result = compare(runtime, directory, plain, twin, heldout_text, "--kv-f32")
    # float32 sums in another order: 3e-13 was seen
    assert result.kld_mean < 1e-9
    assert result.same_top1 == 1


@pytest.mark.parametrize("model", ["llama-biases", "qwen3"])
def test_stq1_0_says_what_sherry_says(model, runtime, trained_model, heldout_text, tmp_path):
    """The same weights, and activations rounded in blocks of the same channels."""
    directory = trained_model(model)
    sherry = convert(directory, tmp_path / "sherry.gguf", types=TypeChoice("f32", "f32")).outfile
    types = TypeChoice("f32", "f32", outtype="stq1_0")
    stq1_0 = convert(directory, tmp_path / "stq1_0.gguf", types=types, regrid="exact").outfile
    result = compare(runtime, directory, sherry, stq1_0, heldout_text)
    # 3e-14 was seen, of float sums; in others such a sum may round an activation to another of its 255 values
    assert result.kld_mean < 1e-6
    assert result.same_top1 > 0.99


def test_parity_knows_the_order(runtime, trained_model, heldout_text, tmp_path):
    """The files that it makes on the way are regridded as well, and compared with the checkpoint as it is."""
    directory = trained_model("qwen3")
    twin = convert(directory, tmp_path / "twin.gguf", types=F32, regrid="exact").outfile
    # 6e-7 was seen, of alpha, keys and values rounded to 11 bits
    limits = Limits(max_perplexity_change=0.01, max_kld=1e-5, min_top1=99)
    report = parity(Source(directory), twin, heldout_text, limits, ctx_size=128, max_chunks=4, threads=2)
    assert report.failures() == []
