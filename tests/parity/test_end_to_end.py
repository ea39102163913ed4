"""Checkpoints through PyTorch and through the built runtime: the figures this project stands for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.cli import run_command
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.parity import reference, scoring
from sherry_gguf.parity.compare import parity
from sherry_gguf.parity.findings import Limits
from sherry_gguf.parity.runtime import open_logits

pytestmark = pytest.mark.runtime

THREADS = 2
LIMITS = Limits(max_perplexity_change=0.15, max_kld=0.001, min_top1=98)


@pytest.fixture(scope="module")
def f32_embeddings(runtime, pinned_gguf, tiny_checkpoint, tmp_path_factory) -> Path:
    outfile = tmp_path_factory.mktemp("parity") / "f32-embeddings.gguf"
    return convert(tiny_checkpoint, outfile, types=TypeChoice(token_embedding="f32", output="f32")).outfile


def test_shipped_checkpoint(f32_embeddings, tiny_checkpoint, heldout_text):
    """40 chunks, the whole way: what tests/data/README.md records for PyTorch, and the limits above."""
    report = parity(Source(tiny_checkpoint), f32_embeddings, heldout_text, LIMITS, max_chunks=40, threads=THREADS)
    assert report.failures() == []
    assert report.total.positions == 40 * 255
    # recorded on another machine: fp32 sums in another order
    assert report.total.base_perplexity == pytest.approx(81.0838, abs=1e-3)
    assert report.weights.tensors == 6 * 7
    assert report.weights.weights == 6 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 768)
    assert report.weights.wrong_weights == report.weights.wrong_scales == 0
    assert report.weights.max_scale_error <= 2.0**-11
    assert report.tokens.in_gguf == report.tokens.in_torch

    scales, cache, activations, other = (step.divergence for step in report.steps)
    # alpha, keys and values rounded to 11 bits: 2e-7 was seen of each
    assert 0 < scales.kld_mean < 1e-6
    assert 0 < cache.kld_mean < 2e-6
    assert activations.kld_mean > 10 * cache.kld_mean
    # the file is what the step before made: the same bytes, the same program
    assert other == activations


def test_scales_per_32(runtime, pinned_gguf, tiny_checkpoint, heldout_text, tmp_path):
    """The shipped checkpoint's latents with a scale per 32: SHERRY_G32 by default, within the same limits."""
    model = tmp_path / "g32"
    shutil.copytree(tiny_checkpoint, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "group_size": 32}), encoding="utf-8")
    converted = convert(model, tmp_path / "g32.gguf", types=TypeChoice(token_embedding="f32", output="f32"))
    assert converted.bits_per_weight("SHERRY_G32") == 1.75
    assert converted.loaded
    report = parity(Source(model), converted.outfile, heldout_text, LIMITS, max_chunks=20, threads=THREADS)
    assert report.failures() == []
    assert report.weights.tensors == 6 * 7
    assert report.weights.wrong_weights == report.weights.wrong_scales == 0


def test_weights_differ_by_the_rounding_of_scales_alone(runtime, pinned_gguf, tiny_checkpoint, heldout_text, tmp_path):
    """With alpha rounded in PyTorch too, the F32 twin says the same up to float32 sums: a KLD of 6e-11 was seen."""
    twin = convert(tiny_checkpoint, tmp_path / "f32.gguf", types=TypeChoice(overrides=((".*", "f32"),))).outfile
    checkpoint = Checkpoint(tiny_checkpoint)
    tokens = reference.tokenize(checkpoint, heldout_text.read_text(encoding="utf-8"))
    chunks = scoring.cut(tokens.tokens, 512, tokens.bos, 4)
    in_torch = reference.load(checkpoint, make_plan(checkpoint), fp16_scales=True)
    program = runtime.program("sherry-logits")
    meter = scoring.Meter()
    with open_logits(program, twin, 512, 256, threads=THREADS, options=["--kv-f32"]) as in_runtime:
        for chunk in chunks:
            meter.add(in_torch(chunk)[256:-1], in_runtime(chunk)[:-1], chunk[257:])
    assert meter.result().kld_mean < 1e-9
    assert meter.result().same_top1 == 1


# Logits of random models are nearly flat: divergences are small, while the first two tokens are often near ties. Seen
# were a KLD of 2.9e-4, 2.4e-4 and 8.7e-4 for the three below, at most 1.6e-4 for those after them, and the same top
# token at 93.3% to 97.6% of 252 positions, whose standard error is 1.5. Routers of experts are near ties too, and an
# expert chosen otherwise is a jump: hence the wider limit.
RANDOM_LIMITS = Limits(max_perplexity_change=1, max_kld=1e-3, min_top1=85)


@pytest.mark.parametrize(
    ("family", "changes", "max_kld"),
    [
        ("Llama", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 640}, 1e-3),
        ("Qwen3", {"tie_word_embeddings": False}, 1e-3),
        ("Qwen3Moe", {}, 1e-2),
    ],
)
def test_random_models(
    family, changes, max_kld, runtime, pinned_gguf, random_checkpoint, sherry_config, heldout_text, tmp_path
):
    """Rows that are no multiple of 256, an output of its own, experts: the whole way, with the default types."""
    model = random_checkpoint(family, sherry=sherry_config, **changes)
    gguf = convert(model, tmp_path / "random.gguf").outfile
    report = random_parity(Source(model), gguf, heldout_text, replace(RANDOM_LIMITS, max_kld=max_kld))
    assert report.failures() == []
    # alpha rounded to 11 bits: at most 1.8e-7 was seen
    assert report.steps[0].divergence.kld_mean < 1e-6


def random_parity(source, gguf, text, limits=RANDOM_LIMITS):
    return parity(source, gguf, text, limits, ctx_size=128, max_chunks=4, threads=THREADS)


@pytest.mark.parametrize(
    ("sherry", "changes", "override", "sherry_tensors"),
    [
        ({"granularity": "per_channel"}, {"intermediate_size": 528}, ("ffn_down", "f16"), 2 * 6),
        ({"granularity": "per_channel"}, {"intermediate_size": 528}, ("ffn_down|attn_q", "f16"), 2 * 5),
        ({"group_size": 16}, {}, ("blk", "f16"), 0),
    ],
)
def test_layers_that_do_not_fit_sherry(
    sherry,
    changes,
    override,
    sherry_tensors,
    runtime,
    pinned_gguf,
    random_checkpoint,
    sherry_config,
    heldout_text,
    tmp_path,
):
    """Rows that are no multiple of 32, scales of 16 weights: of another type in the files made on the way, too."""
    model = random_checkpoint("Llama", sherry=sherry_config | sherry, **changes)
    with pytest.raises(SherryError, match="do not fit SHERRY"):
        convert(model, tmp_path / "random.gguf")
    gguf = convert(model, tmp_path / "random.gguf", types=TypeChoice(overrides=(override,))).outfile
    report = random_parity(Source(model), gguf, heldout_text)
    assert report.failures() == []
    assert report.weights.tensors == sherry_tensors
    assert report.notes() == (
        [] if sherry_tensors else ["the file has no SHERRY tensor; nothing to compare bit by bit"]
    )
    if not sherry_tensors:
        # F16 weights are multiplied with F16 activations: 2.6e-7 was seen
        assert report.steps[2].divergence.kld_mean < 2e-6


def test_exact_types_say_what_sherry_says(
    runtime, pinned_gguf, tiny_checkpoint, sherry_gguf_file, heldout_text, tmp_path
):
    """The same weights, and activations rounded to 8 bits in other blocks: of 128 for SHERRY, of 32 for Q2_0 and Q4_0.

    That rolls the noise of rounding anew: perplexities 0.02% to 0.04% apart were seen, of a standard error of 0.045%.
    """
    checkpoint = Checkpoint(tiny_checkpoint)
    tokens = reference.tokenize(checkpoint, heldout_text.read_text(encoding="utf-8"))
    chunks = scoring.cut(tokens.tokens, 512, tokens.bos, 16)
    program = runtime.program("sherry-logits")
    for outtype in ("q2_0", "q4_0"):
        gguf = convert(tiny_checkpoint, tmp_path / f"{outtype}.gguf", types=TypeChoice(outtype=outtype)).outfile
        meter = scoring.Meter()
        with (
            open_logits(program, sherry_gguf_file, 512, 256, threads=THREADS) as sherry,
            open_logits(program, gguf, 512, 256, threads=THREADS) as other,
        ):
            for chunk in chunks:
                meter.add(sherry(chunk)[:-1], other(chunk)[:-1], chunk[257:])
        assert abs(meter.result().perplexity_change) < 0.1
        assert meter.result().kld_mean < LIMITS.max_kld


def test_a_file_for_a_llama_cpp_without_the_patch(runtime, pinned_gguf, tiny_checkpoint, heldout_text, tmp_path):
    """Parity holds its weights to the checkpoint as it does SHERRY's."""
    gguf = convert(tiny_checkpoint, tmp_path / "q2_0.gguf", types=TypeChoice(outtype="q2_0")).outfile
    report = parity(Source(tiny_checkpoint), gguf, heldout_text, LIMITS, max_chunks=20, threads=THREADS)
    assert report.failures() == []
    assert report.notes() == []
    assert (report.weights.tensors, report.weights.weights) == (42, 4_718_592)
    # let in with the activations, as the file on the way has Q2_0 as well: 4e-7 before them and 1.3e-4 after were seen
    assert report.steps[2].divergence.kld_mean > 10 * report.steps[1].divergence.kld_mean


def test_a_model_that_is_not_sherry(runtime, pinned_gguf, random_checkpoint, heldout_text, tmp_path):
    """The reference is the quantized model: the plain one is far from it."""
    model = random_checkpoint("Llama")
    gguf = convert(Source(model, allow_lossy=True), tmp_path / "random.gguf").outfile
    with refused("--allow-lossy"):
        random_parity(Source(model), gguf, heldout_text)
    report = random_parity(Source(model, allow_lossy=True), gguf, heldout_text)
    assert report.failures() == []
    assert report.weights.wrong_weights == report.weights.wrong_scales == 0
    assert report.lossy_layers == report.weights.tensors == 2 * 7


def command(*arguments) -> int:
    return run_command("parity", [str(argument) for argument in arguments])


@pytest.fixture
def arguments(tiny_checkpoint, heldout_text):
    """A short run: two chunks."""
    return ["--text", heldout_text, "--chunks", 2, "--threads", THREADS, "--no-split"]


def test_default_file_passes_the_default_limits(runtime, tiny_checkpoint, sherry_gguf_file, heldout_text, capfd):
    short = ["--text", heldout_text, "--chunks", 20, "--threads", THREADS]
    status = command(tiny_checkpoint, sherry_gguf_file, *short, "--json")
    out, err = capfd.readouterr()
    found = json.loads(out)  # and nothing else on stdout
    assert status == 0, err
    assert found["ok"] is True
    assert found["weights"]["wrong_weights"] == 0
    assert found["tokens"]["first_difference"] is None
    assert [step["cause"] for step in found["steps"]][-1] == "other types"
    assert found["steps"][-1]["divergence"] == found["total"] != found["steps"][-2]["divergence"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (["--max-kld", "1e-9"], "mean KL divergence"),
        (["--min-top1", "100"], "the same top token at"),
        (["--max-ppl-diff", "0"], "perplexity changes by"),
    ],
)
def test_a_limit_decides_the_exit_status(
    limit, words, runtime, tiny_checkpoint, sherry_gguf_file, arguments, tmp_path, capfd
):
    status = command(tiny_checkpoint, sherry_gguf_file, *arguments, *limit, "--json", tmp_path / "found.json")
    out = capfd.readouterr().out
    assert status == 1
    assert f"FAILED {words}" in out
    (failure,) = json.loads((tmp_path / "found.json").read_text())["failures"]
    assert failure.startswith(words)


@pytest.mark.parametrize(
    ("byte", "words"),
    [(0, "of 4,718,592 weights are not the trained ones"), (20, "of 36,864 scales are not the trained ones")],
)
def test_one_damaged_block_is_found(
    byte, words, runtime, pinned_gguf, tiny_checkpoint, sherry_gguf_file, arguments, tmp_path, capfd
):
    """Too little to be seen in the logits: the lowest bit of a block's first code, and of its scale."""
    damaged = tmp_path / "damaged.gguf"
    shutil.copy(sherry_gguf_file, damaged)
    tensors = {tensor.name: tensor for tensor in pinned_gguf.GGUFReader(damaged, "r").tensors}
    with damaged.open("r+b") as file:
        file.seek(tensors["blk.3.ffn_up.weight"].data_offset + 22 * 5 + byte)
        old = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([old[0] ^ 1]))
    status = command(tiny_checkpoint, damaged, *arguments, "--max-kld", 1, "--min-top1", 0, "--max-ppl-diff", 100)
    out = capfd.readouterr().out
    assert status == 1
    assert out.count("FAILED") == 1
    assert words in out
    # rows of 256 weights have two blocks
    assert "blk.3.ffn_up.weight, row 2, group 32 (weights 128..131)" in out


def test_another_model_is_refused(
    runtime, random_checkpoint, sherry_config, sherry_gguf_file, arguments, heldout_text, capfd
):
    other = random_checkpoint("Llama", sherry=sherry_config, num_hidden_layers=1)
    assert command(other, sherry_gguf_file, *arguments) == 1
    assert "give the GGUF's own checkpoint" in capfd.readouterr().err


def test_a_text_shorter_than_a_chunk_is_refused(runtime, tiny_checkpoint, sherry_gguf_file, tmp_path):
    text = tmp_path / "text"
    text.write_text("We the people")
    with pytest.raises(SherryError, match="less than one chunk of 512"):
        parity(Source(tiny_checkpoint), sherry_gguf_file, text, LIMITS)
