"""What the converter takes a checkpoint for, and the words in which it refuses one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize

SHERRY = {"quant_method": "sherry", "N": 3, "M": 4, "granularity": "per_channel"}


def floats(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((128, 256)) * 0.02).astype(np.float32)


def baked(seed: int = 0) -> np.ndarray:
    found = quantize(floats(seed))
    return expand(found.codes, found.scales)


def strided() -> np.ndarray:
    found = quantize(floats(), Granularity("per_channel"))
    return expand(found.codes, found.scales).reshape(128, 4, 16, 4).swapaxes(2, 3).reshape(128, 256)


def ternary() -> np.ndarray:
    return (np.clip(np.round(floats() * 50), -1, 1) * 0.02).astype(np.float32)


def plan_of(checkpoint, **said):
    """The plan of a checkpoint of which a user says so much."""
    return make_plan(checkpoint, Source(checkpoint.path, **said))


def sources(plan) -> list[str]:
    return [layer.source for layer in plan.layers.values()]


@pytest.fixture
def checkpoint(tmp_path):
    def make(*matrices, config=None):
        tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.from_numpy(m.copy()) for i, m in enumerate(matrices)}
        tensors["model.layers.0.input_layernorm.weight"] = torch.ones(256)
        tensors["model.layers.0.mlp.gate.weight"] = torch.ones(8, 256)  # a router: not a Sherry layer
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        return Checkpoint(tmp_path)

    return make


def test_declared_by_config(checkpoint):
    plan = plan_of(checkpoint(floats(), floats(1), config=SHERRY))
    assert sources(plan) == ["latent"] * 2
    assert plan.granularity == Granularity("per_channel")


def test_a_flag_wins_over_config_and_declares_plain_weights(checkpoint):
    for config in (SHERRY, {}):
        plan = plan_of(checkpoint(floats(), config=config), granularity=Granularity("per_group", 256))
        assert sources(plan) == ["latent"]
        assert plan.granularity == Granularity("per_group", 256)


def test_baked_weights_need_no_declaration(checkpoint):
    plan = plan_of(checkpoint(baked(), baked(1)))
    assert sources(plan) == ["baked"] * 2
    assert plan.summary() == "2 baked Sherry layers"


def test_baked_weights_are_read_off_whatever_config_says(checkpoint):
    assert sources(plan_of(checkpoint(baked(), config=SHERRY))) == ["baked"]


def test_masked_latents_are_latents_once_declared(checkpoint):
    masked = np.where(baked() == 0, 0, floats()).astype(np.float32)
    with pytest.raises(SherryError, match=r"sparse.*declare the granularity"):
        plan_of(checkpoint(masked))
    assert sources(plan_of(checkpoint(masked), granularity=Granularity())) == ["latent"]


def test_a_plain_model_is_refused_unless_allowed(checkpoint):
    with refused(r"all 1 layers .*--granularity per_group --group-size 128.*--allow-lossy"):
        plan_of(checkpoint(floats()))
    plan = plan_of(checkpoint(floats()), allow_lossy=True)
    assert sources(plan) == ["lossy"]


def test_plain_beside_baked_is_refused(checkpoint):
    with refused(r"1 of 2 layers, the first model\.layers\.1\..*--sherry-layers"):
        plan_of(checkpoint(baked(), floats()))
    plan = plan_of(checkpoint(baked(), floats()), sherry_layers=r"layers\.0\..*up_proj")
    assert sources(plan) == ["baked"]


def test_only_the_layers_that_config_json_declares_are_quantized(checkpoint):
    """A model of which some layers were trained as Sherry's: the others are floats, and no latents."""
    config = {**SHERRY, "sherry_layers": r"layers\.1\..*up_proj"}
    some = checkpoint(floats(), floats(1), config=config)
    assert list(plan_of(some).layers) == ["model.layers.1.mlp.up_proj.weight"]
    assert list(plan_of(some, sherry_layers=r"layers\.0\..*up_proj").layers) == ["model.layers.0.mlp.up_proj.weight"]
    for value, message in (("(", "no regular expression"), (7, "sherry_layers is 7")):
        with pytest.raises(SherryError, match=rf"config\.json: .*{message}"):
            plan_of(checkpoint(floats(), config={**SHERRY, "sherry_layers": value}))


def grids(plan) -> list[tuple[str, ...]]:
    return [layer.grids for layer in plan.layers.values()]


def test_another_grid_is_refused_with_what_fits(checkpoint):
    with refused(r"dense ternary.*--method ternary") as caught:
        plan_of(checkpoint(ternary(), ternary(), config=SHERRY))
    assert "2 of 2 layers, the first model.layers.0.mlp.up_proj.weight" in str(caught.value)
    assert plan_of(checkpoint(ternary(), ternary())).rule.method == "ternary"
    with refused("1 of 2 layers, the first model.layers.1.mlp.up_proj.weight, are dense ternary"):
        plan_of(checkpoint(baked(), ternary()))
    assert sources(plan_of(checkpoint(ternary()), allow_lossy=True)) == ["lossy"]


def test_the_groups_of_baked_weights_are_seen(checkpoint):
    empty = np.zeros((128, 256), dtype=np.float32)
    plan = plan_of(checkpoint(baked(), strided(), empty))
    assert sources(plan) == ["baked"] * 3
    assert grids(plan) == [("consecutive",), ("stride16",), ("consecutive", "stride16")]
    assert plan.summary() == "3 baked Sherry layers, 1 of them with groups of weights 16 apart"


def test_a_grid_that_baked_weights_do_not_have_is_refused(checkpoint):
    """A key of config.json is not, as no other is."""
    mixed = checkpoint(baked(), strided(), config={"sherry_grid": "stride16"})
    assert grids(plan_of(mixed)) == [("consecutive",), ("stride16",)]
    with pytest.raises(
        SherryError, match=r"1 of 2 layers, the first model\.layers\.0\..* baked with consecutive groups"
    ):
        plan_of(mixed, grid="stride16")
    with pytest.raises(SherryError, match=r"the first model\.layers\.1\..* baked with stride16 groups"):
        plan_of(mixed, grid="consecutive")


def test_the_groups_of_latents_are_declared(checkpoint):
    config = {**SHERRY, "granularity": "per_group", "group_size": 256}
    assert grids(plan_of(checkpoint(floats(), config=config))) == [("consecutive",)]
    assert grids(plan_of(checkpoint(floats(), config=config), grid="stride16")) == [("stride16",)]
    declared = checkpoint(floats(), config={**config, "sherry_grid": "stride16"})
    assert grids(plan_of(declared)) == [("stride16",)]
    assert plan_of(declared).granularity == Granularity("per_group", 256)
    assert grids(plan_of(declared, grid="consecutive")) == [("consecutive",)]
    for value in ("stride8", 16, None):
        with pytest.raises(SherryError, match=r"config\.json: sherry_grid is .*, none of consecutive, stride16"):
            plan_of(checkpoint(floats(), config={**config, "sherry_grid": value}))


def test_a_grid_alone_declares_no_latents_but_a_forced_model_takes_its_scales(checkpoint):
    with refused(r"--granularity per_group --grid stride16"):
        plan_of(checkpoint(floats()), grid="stride16")
    plan = plan_of(checkpoint(floats()), allow_lossy=True, grid="stride16")
    assert (sources(plan), grids(plan)) == (["lossy"], [("stride16",)])
    assert plan.granularity == Granularity("per_group", 256)


def test_allow_lossy_still_reads_what_is_declared_as_it_was_trained(checkpoint):
    plan = plan_of(checkpoint(floats(), ternary(), config=SHERRY), allow_lossy=True)
    assert sources(plan) == ["latent", "lossy"]
    assert plan.granularity == Granularity("per_channel")
    plan = plan_of(checkpoint(floats(), config={**SHERRY, "quant_method": "twn"}), allow_lossy=True)
    assert sources(plan) == ["lossy"]


@pytest.mark.parametrize("row", [3, 100])
def test_a_damaged_baked_layer_is_still_a_baked_layer(checkpoint, row):
    """In the sample or behind it: reading the layer will name the place."""
    weights = baked()
    weights[row, 8:12] = 0, 0, 0.5, 0.1
    assert sources(plan_of(checkpoint(weights))) == ["baked"]


@pytest.mark.parametrize("pruned", [64, 100, 127])
def test_rows_of_zeros_say_nothing(checkpoint, pruned):
    """Of a pruned head: the rows behind them tell what it is."""
    for weights, config, source in ((floats(), SHERRY, "latent"), (baked(), {}, "baked")):
        weights[:pruned] = 0
        assert sources(plan_of(checkpoint(weights, config=config))) == [source]
    weights = floats()
    weights[:pruned] = 0
    with refused("all 1 layers hold floating-point weights"):
        plan_of(checkpoint(weights))
    weights = floats()
    weights[::2] = 0
    assert sources(plan_of(checkpoint(weights, config=SHERRY))) == ["latent"]


@pytest.mark.parametrize("experts", [1, 3])
def test_an_expert_of_zeros_says_nothing(checkpoint, experts):
    stack = np.stack([floats(seed) for seed in range(4)])
    stack[:experts] = 0
    assert sources(plan_of(checkpoint(stack, config=SHERRY))) == ["latent"]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int64"])
def test_integers_are_no_latents(checkpoint, dtype):
    with refused(rf"layers\.0\.mlp\.up_proj\.weight: has dtype {dtype}, .*--sherry-layers"):
        plan_of(checkpoint(np.ones((128, 256), dtype=dtype), config=SHERRY))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.float8_e4m3fn])
def test_no_latents_in_a_state_dict(tmp_path, dtype):
    torch.save({"model.layers.0.mlp.up_proj.weight": torch.ones(128, 256).to(dtype)}, tmp_path / "x.pt")
    (tmp_path / "config.json").write_text(json.dumps(SHERRY))
    source = Source(tmp_path / "x.pt", tmp_path)
    with pytest.raises(SherryError, match=r"up_proj\.weight: has dtype (complex64|int8|float8_e4m3fn)"):
        make_plan(source.open(), source)


def test_another_method_in_config_is_refused(checkpoint):
    with pytest.raises(SherryError, match="'binary', not 'sherry', which gives weights of one magnitude"):
        plan_of(checkpoint(floats(), config={**SHERRY, "quant_method": "binary"}))


def test_no_layer_matches(checkpoint):
    with pytest.raises(SherryError, match="no weight's name matches"):
        plan_of(checkpoint(floats(), config=SHERRY), sherry_layers="nothing")


def test_a_norm_is_no_layer(checkpoint):
    with pytest.raises(SherryError, match=r"input_layernorm\.weight: has shape \[256\]"):
        plan_of(checkpoint(floats(), config=SHERRY), sherry_layers="layernorm")
