"""Regridded files in llama.cpp: the logits of the checkpoint, from weights in another order."""

from __future__ import annotations

import pytest

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.parity import measure, reference
from sherry_gguf.parity.compare import Source, parity
from sherry_gguf.parity.report import Limits
from sherry_gguf.parity.runtime import open_logits
from sherry_gguf.regrid import is_regridded

pytestmark = [pytest.mark.runtime, pytest.mark.usefixtures("pinned_gguf")]

MODELS = ("llama", "llama-biases", "qwen2", "qwen3")
F32 = TypeChoice(outtype="stq1_0", overrides=((".*", "f32"),))


@pytest.mark.parametrize("model", MODELS)
def test_f32_twins_say_the_same(model, runtime, trained_model, heldout_text, tmp_path):
    """One in the checkpoint's order and one regridded, both in llama.cpp."""
    directory = trained_model(model)
    plain = convert(directory, tmp_path / "plain.gguf", types=TypeChoice(overrides=F32.overrides)).outfile
    twin = convert(directory, tmp_path / "twin.gguf", types=F32, regrid="exact").outfile
    assert (is_regridded(plain), is_regridded(twin)) == (False, True)
    tokens = reference.tokenize(Checkpoint(directory), heldout_text.read_text(encoding="utf-8"))
    chunks = measure.cut(tokens.tokens, 256, tokens.bos, 4)
    meter = measure.Meter()
    program = runtime.program("sherry-logits")
    with (
        open_logits(program, plain, 256, 128, threads=2, options=["--kv-f32"]) as before,
        open_logits(program, twin, 256, 128, threads=2, options=["--kv-f32"]) as after,
    ):
        for chunk in chunks:
            meter.add(before(chunk)[:-1], after(chunk)[:-1], chunk[129:])
    # float32 sums in another order: 3e-13 was seen
    assert meter.result().kld_mean < 1e-9
    assert meter.result().same_top1 == 1


def test_parity_knows_the_order(runtime, trained_model, heldout_text, tmp_path):
    """The files that it makes on the way are regridded as well, and compared with the checkpoint as it is."""
    directory = trained_model("qwen3")
    twin = convert(directory, tmp_path / "twin.gguf", types=F32, regrid="exact").outfile
    # 6e-7 was seen, of alpha, keys and values rounded to 11 bits
    limits = Limits(max_perplexity_change=0.01, max_kld=1e-5, min_top1=99)
    report = parity(Source(directory), twin, heldout_text, limits, ctx_size=128, max_chunks=4, threads=2)
    assert report.failures() == []
