"""The architectures of the published models, the whole way: checkpoint, GGUF, patched llama.cpp, and PyTorch beside it.

One file in the runtime is compared with another that holds the same weights as F32 and runs upstream's own kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
from reading import tensors_of

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.parity import reference, scoring
from sherry_gguf.parity.compare import parity
from sherry_gguf.parity.findings import Limits
from sherry_gguf.parity.runtime import open_logits

CONTEXT, FIRST, CHUNKS = 128, 64, 4
TYPES = ("SHERRY", "SHERRY_G32", "STQ1_0")
MODELS = [(family, grid) for family in ("HunYuanDenseV1", "HYV4") for grid in TYPES]
every_model = pytest.mark.parametrize(("family", "grid"), MODELS)

# What the block's other matrices are called; they are no Sherry layers, and F32 here, to see those alone.
OTHERS = {"HunYuanDenseV1": (), "HYV4": (("attn_(q_a|q_b|kv_a_mqa|k_b|v_b|gate)|indexer", "f32"),)}


@pytest.fixture(scope="module")
def converted(pinned_gguf, published_checkpoint, tmp_path_factory):
    """make(family, grid): its Sherry layers in the type of that name, and all else F32."""
    directory = tmp_path_factory.mktemp("converted")
    made = {}

    def make(family, grid):
        if (family, grid) not in made:
            types = TypeChoice(token_embedding="f32", output="f32", overrides=OTHERS[family], outtype=grid.lower())
            made[family, grid] = convert(
                published_checkpoint(family, grid), directory / f"{family}-{grid}.gguf", types=types
            )
        return made[family, grid]

    return make


@pytest.fixture(scope="module")
def twin(pinned_gguf, published_checkpoint, tmp_path_factory):
    """make(family, grid): the same values, every tensor F32."""
    directory = tmp_path_factory.mktemp("twins")
    made = {}

    def make(family, grid):
        if (family, grid) not in made:
            model, file = published_checkpoint(family, grid), directory / f"{family}-{grid}.gguf"
            types = TypeChoice(overrides=((".*", "f32"),))
            made[family, grid] = convert(model, file, types=types).outfile
        return made[family, grid]

    return make


@pytest.fixture(scope="module")
def chunks(published_checkpoint, heldout_text):
    tokens = reference.tokenize(
        Checkpoint(published_checkpoint("HYV4", "SHERRY")), heldout_text.read_text(encoding="utf-8")
    )
    return scoring.cut(tokens.tokens, CONTEXT, tokens.bos, CHUNKS)


@pytest.fixture(scope="module")
def logits(runtime, chunks):
    """run(file, *options): float32[chunks * positions, n_vocab], by one thread."""
    program = runtime.program("sherry-logits")

    def run(file, *options):
        with open_logits(program, file, CONTEXT, FIRST, threads=1, options=options) as in_runtime:
            return np.concatenate([in_runtime(chunk) for chunk in chunks])

    return run


@every_model
def test_tensors_are_of_the_type_and_hold_the_weights(family, grid, converted):
    report = converted(family, grid)
    kinds = {tensor.name: tensor.type_name for tensor in report.tensors}
    ours = sorted(name for name, kind in kinds.items() if kind == grid)
    assert set(kinds.values()) == {grid, "F32"}
    if family == "HYV4":
        names = ["attn_output", *(f"ffn_{what}" for what in ("down", "gate", "up"))]
        experts = [f"ffn_{what}_{which}" for which in ("exps", "shexp") for what in ("down", "gate", "up")]
        expected = [*(f"blk.0.{n}.weight" for n in names)]
        expected += [f"blk.{block}.{n}.weight" for block in (1, 2) for n in ("attn_output", *experts)]
    else:
        names = [*(f"attn_{what}" for what in ("q", "k", "v", "output")), "ffn_down", "ffn_gate", "ffn_up"]
        expected = [f"blk.{block}.{n}.weight" for block in (0, 1) for n in names]
    assert ours == sorted(expected)
    assert report.verdict.sherry.tensors == len(expected)
    assert report.verdict.sherry.wrong_weights == report.verdict.sherry.wrong_scales == 0
    assert any("attn_gate, attn_k_b, attn_kv_a_mqa" in note for note in report.notes) == (family == "HYV4")


def test_latent_attention_can_be_sherry_too(pinned_gguf, published_checkpoint, tmp_path):
    """All of HY_V4's projections, named. llama.cpp transposes the keys' half of kv_b_proj, so it has no groups."""
    model, file = published_checkpoint("HYV4", "SHERRY"), tmp_path / "model.gguf"
    names = r"\.(\w+_a_proj(_with_mqa)?|\w+_b_proj|linear_gate|o_proj|\w*(gate|up|down)_proj)(\.weight)?$"
    with pytest.raises(SherryError, match=r"attn_k_b\.weight: rows of 64 weights are no multiple of 128"):
        convert(Source(model, sherry_layers=names), file)
    report = convert(Source(model, sherry_layers=names), file, types=TypeChoice(overrides=(("attn_k_b", "f16"),)))
    kinds = {tensor.name: tensor.type_name for tensor in report.tensors if tensor.name.startswith("blk.2.attn")}
    assert {name.split(".")[2] for name, kind in kinds.items() if kind == "SHERRY"} == {
        *("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_v_b", "attn_gate", "attn_output")
    }
    assert kinds["blk.2.attn_k_b.weight"] == "F16"


def relative_errors(found, expected):
    """Of each position's logits: the root mean square of the difference, in standard deviations of what is expected."""
    return np.sqrt(((found - expected) ** 2).mean(axis=1) / expected.var(axis=1))


# The weights are the same; activations are rounded to 8 bits, with the largest of a block at 127. The largest of 128
# normal values is 2.7 sigma, so that rounding, uniform over a step of 2.7 / 127 sigma, adds 0.6% to a product. Four
# products lie one behind the other in a layer, each adds its own error: 0.6% * sqrt(4 * 3) = 2.1% for three layers, and
# twice that is allowed. 2.4% was seen of Hunyuan's two layers, 3.2% of HY_V4's three. The median over positions, as an
# expert chosen otherwise at a near tie is a jump.
MEDIAN_ERROR = 0.042


@pytest.mark.runtime
@every_model
def test_kernels_say_what_the_f32_twin_says(family, grid, converted, twin, logits):
    errors = relative_errors(logits(converted(family, grid).outfile), logits(twin(family, grid)))
    assert 0 < np.median(errors) < MEDIAN_ERROR
    if family == "HunYuanDenseV1":
        assert errors.max() < 2 * MEDIAN_ERROR


@pytest.mark.runtime
@pytest.mark.parametrize("grid", TYPES)
@pytest.mark.parametrize("options", [(), ("--no-repack",)])
def test_every_expert_is_read_from_its_own_place(grid, options, converted, logits, tmp_path):
    """Without the weights of any one expert of any layer the logits are others: all are used, at every offset."""
    file = converted("HYV4", grid).outfile
    whole = logits(file, *options)
    stacked = [t for name, t in tensors_of(file).items() if name.endswith("ffn_down_exps.weight")]
    assert len(stacked) == 2
    for tensor in stacked:
        n_experts = int(tensor.shape[2])
        assert n_experts == 4
        size = tensor.n_bytes // n_experts
        for expert in range(n_experts):
            content = bytearray(file.read_bytes())
            start = int(tensor.data_offset) + expert * size
            content[start : start + size] = bytes(size)
            (tmp_path / "without.gguf").write_bytes(content)
            without = logits(tmp_path / "without.gguf", *options)
            assert (without != whole).any()


@pytest.mark.runtime
@pytest.mark.parametrize("grid", TYPES)
def test_hunyuan_dense_is_what_pytorch_computes(
    grid, runtime, pinned_gguf, published_checkpoint, heldout_text, tmp_path
):
    """With the default types. The limits of tests/parity for random models, and for the same reasons."""
    model = published_checkpoint("HunYuanDenseV1", grid)
    gguf = convert(model, tmp_path / "model.gguf", types=TypeChoice(outtype=grid.lower())).outfile
    limits = Limits(max_perplexity_change=1, max_kld=1e-3, min_top1=85)
    report = parity(Source(model), gguf, heldout_text, limits, ctx_size=CONTEXT, max_chunks=CHUNKS, threads=1)
    assert report.failures() == []
    assert report.weights.tensors == 2 * 7
    # alpha rounded to 11 bits
    assert report.steps[0].divergence.kld_mean < 1e-6


@pytest.mark.runtime
@pytest.mark.parametrize("grid", TYPES)
def test_hy_v4_is_what_pytorch_computes(grid, published_checkpoint, for_transformers, chunks, converted, twin, logits):
    """The F32 twin up to the order of float sums: a KLD of 4e-11 was seen."""
    model = Checkpoint(for_transformers(published_checkpoint("HYV4", grid)))
    in_torch = reference.load(model, make_plan(model), fp16_scales=True, threads=1)
    expected = np.concatenate([in_torch(chunk)[FIRST:] for chunk in chunks])

    meter = scoring.Meter()
    meter.add(expected, logits(twin("HYV4", grid), "--kv-f32"), expected.argmax(axis=1))
    assert meter.result().kld_mean < 1e-9
    assert meter.result().same_top1 == 1
    assert np.median(relative_errors(logits(converted("HYV4", grid).outfile), expected)) < MEDIAN_ERROR
