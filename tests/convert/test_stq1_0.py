"""Sherry layers in STQ1_0: read off or quantized on its grid, exact, and refused where groups are neighbours."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from reading import field, matrices_of
from refusals import refused
from remaking import PROJECTION, remake
from safetensors.torch import load_file
from trainer import stored_forward

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.cli import run_command
from sherry_gguf.commands.convert import WAYS
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.verify import verify
from sherry_gguf.errors import SherryError
from sherry_gguf.formats import stq1_0
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.parity import weights as parity_weights
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")

STQ1_0 = TypeChoice(outtype="stq1_0")


def strided(w: np.ndarray) -> np.ndarray:
    """[rows, k], neighbours in fours -> the same with the members of a group 16 apart."""
    return w.reshape(len(w), -1, 16, 4).swapaxes(2, 3).reshape(w.shape)


def neighbours(w: np.ndarray) -> np.ndarray:
    """The inverse of ``strided``."""
    return w.reshape(len(w), -1, 4, 16).swapaxes(2, 3).reshape(w.shape)


def trained(w: torch.Tensor) -> np.ndarray:
    """float32[rows, k]: latents as the forward would have them with groups 16 apart, alpha of 256 rounded to fp16."""
    return strided(stored_forward(torch.from_numpy(np.ascontiguousarray(neighbours(w.float().numpy()))), 256))


def baked(w: torch.Tensor, granularity: Granularity, *, apart: bool) -> torch.Tensor:
    grid = quantize(w.float().numpy(), granularity)
    values = expand(grid.codes, grid.scales)
    return torch.from_numpy(np.ascontiguousarray(strided(values) if apart else values))


@pytest.fixture(scope="module")
def apart(tiny_checkpoint, tmp_path_factory):
    """The shipped checkpoint, baked on STQ1_0's grid, a scale per 256."""
    granularity = Granularity("per_group", 256)
    target = tmp_path_factory.mktemp("apart") / "model"
    return remake(tiny_checkpoint, target, lambda name, w: baked(w, granularity, apart=True))


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint, tmp_path_factory):
    """Baked layers of either grid, and with scales that STQ1_0 holds or does not."""
    kinds = {"q_proj": (256, True), "k_proj": (128, False), "v_proj": (128, True), "o_proj": (256, False)}

    def change(name, w):
        size, apart = kinds.get(name.split(".")[-2], (256, True))
        return baked(w, Granularity("per_group", size), apart=apart)

    return remake(tiny_checkpoint, tmp_path_factory.mktemp("mixed") / "model", change)


def types_of(path):
    """What comes after blk.N. -> type; the same in all blocks."""
    found = {name: tensor.tensor_type.name for name, tensor in matrices_of(path).items()}
    by_layer = {name.split(".", 2)[2]: kind for name, kind in found.items()}
    assert all(by_layer[name.split(".", 2)[2]] == kind for name, kind in found.items())
    return by_layer


def test_baked_weights(apart, pinned_gguf, tmp_path):
    report = convert(apart, tmp_path / "x.gguf", types=STQ1_0)
    assert report.source == "42 baked Sherry layers, 42 of them with groups of weights 16 apart"
    assert str(report.verdict).startswith("verified: 42 STQ1_0 tensors, 4,718,592 weights, all codes equal")
    assert report.bits_per_weight("STQ1_0") == 1.3125
    assert field(report.outfile, "general.file_type") == 513
    assert field(report.outfile, "sherry.format_version") is None
    tensors = matrices_of(report.outfile)
    assert {tensor.tensor_type.value for tensor in tensors.values()} == {43}
    state = load_file(apart / "model.safetensors")
    for layer in range(6):
        expected = state[f"model.layers.{layer}.mlp.down_proj.weight"].half().float().numpy()
        data = tensors[f"blk.{layer}.ffn_down.weight"].data
        assert np.array_equal(data, stq1_0.STQ1_0.pack(expected))
        assert np.array_equal(
            pinned_gguf.quants.dequantize(data, tensors["blk.0.ffn_down.weight"].tensor_type), expected
        )
    auto = convert(apart, tmp_path / "auto.gguf", types=TypeChoice(outtype="auto"))
    assert auto.outfile.read_bytes() == report.outfile.read_bytes()
    named = convert(apart, tmp_path / "{ftype}.gguf", types=STQ1_0)
    assert named.outfile.name == "stq1_0.gguf"


def test_sherry_refuses_them(apart, tmp_path):
    message = (
        r"^blk\.0\.\S+: at least [\d,]+ of [\d,]+ weights do not fit SHERRY and would change: its blocks have "
        r"128 weights and one scale, and one zero in every 4 neighbours; 42 of 42 tensors do not fit, "
        r"with ([\d,]+) of 4,718,592 weights; --outtype stq1_0 holds all$"
    )
    with pytest.raises(SherryError) as caught:
        convert(apart, tmp_path / "x.gguf")
    # scales of 256 fit, so what changes are zeros and the weights that must become some
    changed = int(re.search(message, caught.value.worded(WAYS))[1].replace(",", ""))
    assert 0 < changed < 4718592 // 2
    assert not list(tmp_path.iterdir())


def least_changes(w: np.ndarray) -> int:
    """How many weights float32[rows, k] no STQ1_0 block can have: with every scale of a block, and every code."""
    fours = neighbours(w).reshape(-1, 64, 1, 4)
    magnitudes = np.abs(fours).reshape(len(fours), -1)
    # the shipped layers have two scales in a block, and no run is empty
    scales = np.stack([magnitudes.max(axis=1), np.where(magnitudes == 0, np.inf, magnitudes).min(axis=1)])
    kept = (fours == 0).sum(axis=(1, 2, 3))
    for scale in scales:
        kept = np.maximum(kept, (fours == scale[:, None, None, None] * PATTERNS).sum(axis=-1).max(axis=-1).sum(axis=1))
    return w.size - int(kept.sum())


def test_the_shipped_checkpoint_is_refused_with_all_that_would_change(tiny_checkpoint, tmp_path):
    state = load_file(tiny_checkpoint / "model.safetensors")
    changes = {}
    for name, w in state.items():
        if PROJECTION.search(name):
            grid = quantize(w.float().numpy())
            scales = grid.scales.astype(np.float16).astype(np.float32)
            changes[name] = least_changes(expand(grid.codes, scales))
    first = "model.layers.0.mlp.down_proj.weight"
    message = (
        f"blk.0.ffn_down.weight: at least {changes[first]:,} of {state[first].numel():,} weights do not fit STQ1_0 and "
        f"would change: its blocks have 256 weights and one scale, and one zero in every 4 weights 16 apart; "
        f"42 of 42 tensors do not fit, with {sum(changes.values()):,} of 4,718,592 weights; --outtype sherry holds all"
    )
    with pytest.raises(SherryError) as caught:
        convert(tiny_checkpoint, tmp_path / "x.gguf", types=STQ1_0)
    assert caught.value.worded(WAYS) == message
    assert not list(tmp_path.iterdir())


def test_neighbours_with_scales_that_fit_can_be_regridded(tiny_checkpoint, tmp_path):
    with refused(r"--outtype sherry holds all; --regrid exact makes them fit$"):
        convert(Source(tiny_checkpoint, granularity=Granularity("per_channel")), tmp_path / "x.gguf", types=STQ1_0)


def test_mixed_grids(mixed, tmp_path):
    report = convert(mixed, tmp_path / "x.gguf", types=TypeChoice(outtype="auto"))
    assert types_of(report.outfile) == {
        "attn_q.weight": "STQ1_0",
        "attn_k.weight": "SHERRY",
        "attn_v.weight": "Q2_0",
        "attn_output.weight": "SHERRY",
        "ffn_gate.weight": "STQ1_0",
        "ffn_up.weight": "STQ1_0",
        "ffn_down.weight": "STQ1_0",
    }
    assert str(report.verdict).startswith("verified: 42 Q2_0 and SHERRY and STQ1_0 tensors")
    assert field(report.outfile, "general.file_type") == 512
    assert field(report.outfile, "sherry.format_version") == 1
    # v's scales of 128 fit neither, the others one of the two
    for outtype, misfits in (("stq1_0", 18), ("sherry", 30)):
        with refused(rf"{misfits} of 42 tensors do not fit, .*--outtype auto takes for each"):
            convert(mixed, tmp_path / "no.gguf", types=TypeChoice(outtype=outtype))
    # what is said to hold all does
    with refused(r"--outtype q2_0 holds all"):
        convert(mixed, tmp_path / "no.gguf", types=TypeChoice(outtype="tq2_0"))
    assert convert(mixed, tmp_path / "q2_0.gguf", types=TypeChoice(outtype="q2_0")).verdict.sherry.tensors == 42


def test_latents(tiny_checkpoint, pinned_gguf, tmp_path):
    """By the flags of the command, and by the keys of config.json."""
    by_flags = tmp_path / "flags.gguf"
    flags = ["--grid", "stride16", "--granularity", "per_group", "--outtype", "stq1_0", "--outfile", str(by_flags)]
    assert run_command("convert", [str(tiny_checkpoint), *flags]) == 0
    shutil.copytree(tiny_checkpoint, tmp_path / "declared")
    config = json.loads((tmp_path / "declared" / "config.json").read_text())
    config |= {"group_size": 256, "sherry_grid": "stride16"}
    (tmp_path / "declared" / "config.json").write_text(json.dumps(config))
    by_keys = convert(tmp_path / "declared", tmp_path / "keys.gguf", types=STQ1_0)
    assert by_keys.source == "42 latent Sherry layers, scales per_group 256, 42 of them with groups of weights 16 apart"
    state = load_file(tiny_checkpoint / "model.safetensors")
    for path in (by_flags, by_keys.outfile):
        tensors = matrices_of(path)
        assert {tensor.tensor_type.name for tensor in tensors.values()} == {"STQ1_0"}
        for layer in range(6):
            w = state[f"model.layers.{layer}.mlp.up_proj.weight"]
            assert np.array_equal(stq1_0.STQ1_0.dequantize(tensors[f"blk.{layer}.ffn_up.weight"].data), trained(w))


def test_latents_of_another_scale_are_refused(tiny_checkpoint, tmp_path):
    """config.json's scales per 128 stay, whatever the grid: that they do not fit is said."""
    with refused(r"do not fit STQ1_0 .* 42 of 42 tensors .*--outtype q2_0 holds all$"):
        convert(Source(tiny_checkpoint, grid="stride16"), tmp_path / "x.gguf", types=STQ1_0)


def test_a_plain_model_is_forced_on_the_grid_that_was_asked_for(random_checkpoint, tmp_path):
    directory = random_checkpoint("Llama")
    report = convert(Source(directory, grid="stride16", allow_lossy=True), tmp_path / "x.gguf", types=STQ1_0)
    assert report.source.startswith("14 lossy Sherry layers, scales per_group 256")
    assert len(report.losses) == 14
    assert report.verdict.sherry.tensors == 14


def test_experts(random_checkpoint, sherry_config, tmp_path):
    sherry = {**sherry_config, "group_size": 256, "sherry_grid": "stride16"}
    directory = random_checkpoint("Qwen3Moe", sherry=sherry, moe_intermediate_size=256)
    report = convert(directory, tmp_path / "x.gguf", types=STQ1_0)
    assert set(types_of(report.outfile).values()) == {"STQ1_0", "F32"}  # routers
    assert report.verdict.sherry.tensors == 14
    data = matrices_of(report.outfile)["blk.1.ffn_up_exps.weight"].data
    state = load_file(directory / "model.safetensors")
    for expert in range(4):
        w = state[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"]
        assert np.array_equal(stq1_0.STQ1_0.dequantize(data[expert]), trained(w))


def test_a_baked_layer_that_was_changed_is_refused(apart, tmp_path):
    def damage(name, w):
        if "layers.2.mlp.up_proj" in name:
            w[100, [70, 86]] = 0  # behind the rows that a plan looks at
        return w

    directory = remake(apart, tmp_path / "damaged", damage)
    message = r"layers\.2\.mlp\.up_proj\.weight: .* not Sherry's, .* row 100, group 22 \(weights 70, 86, 102, 118\)"
    with pytest.raises(SherryError, match=message):
        convert(directory, tmp_path / "x.gguf", types=STQ1_0)


def test_damage_of_a_file_is_found(apart, tmp_path):
    """By the converter's own verification and by parity's, weight by weight."""
    checkpoint = Checkpoint(apart)
    plan = make_plan(checkpoint)
    file = convert(apart, tmp_path / "x.gguf", types=STQ1_0, verify=False).outfile
    assert verify([file], open_model(Job(checkpoint, plan, STQ1_0, as_trained=True), file)).sherry.weights == 4718592
    right = parity_weights.check(file, checkpoint, plan)
    assert (right.tensors, right.weights, right.first_wrong) == (42, 4718592, None)
    assert {kind for _, kind in parity_weights.other_types(file, checkpoint, plan)} == {"stq1_0"}

    tensor = matrices_of(file)["blk.3.ffn_up.weight"]
    row = tensor.data_offset + 5 * tensor.data.shape[1]
    for offset, bit, weights, scales in ((0, 1 << 4, 1, 0), (32, 1 << 1, 3, 0), (40, 1, 0, 1)):
        content = bytearray(file.read_bytes())
        content[row + offset] ^= bit
        (tmp_path / "damaged.gguf").write_bytes(content)
        wrong = parity_weights.check(tmp_path / "damaged.gguf", checkpoint, plan)
        assert (wrong.wrong_weights, wrong.wrong_scales) == (weights, scales)
        group = "0 (weights 0, 16, 32, 48)" if scales else "1 (weights 1, 17, 33, 49)"
        assert wrong.first_wrong == f"blk.3.ffn_up.weight, row 5, group {group}"
        with pytest.raises(SherryError, match=r"blk\.3\.ffn_up\.weight, row 5, group [01] .* is not what was trained"):
            verify([tmp_path / "damaged.gguf"], open_model(Job(checkpoint, plan, STQ1_0, as_trained=True), file))
