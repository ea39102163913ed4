"""The relatives of Sherry: checkpoints made by the rule of the code that published each, and what their files say.

    python scripts/families.py [FAMILY ...]    converts one checkpoint of each, prints a row of docs/families.md

None is a published file: none was found in a package registry. Each rule is written down here once more, from
the published forward, and shares nothing with the package. The latents are those of tests/data/sotu-sherry, which were
trained for Sherry: perplexities are there to compare llama.cpp with PyTorch, and say nothing of a method.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sherry_gguf.weights.ternary import Method

DATA = Path(__file__).parents[1] / "tests" / "data"
PROJECTION = re.compile(r"_proj\.weight$")
TRAINER_KEYS = ("w_bits", "quant_method", "granularity", "group_size", "N", "M", "eps")  # of config.json


def runs_of(w: Tensor, length: int) -> Tensor:
    return w.reshape(-1, length)


def absmean(w: Tensor, length: int) -> Tensor:
    """AngelSlim's StaticTernaryQuant, in the dtype of the latents."""
    x = runs_of(w, length)
    mean = x.abs().mean(-1, keepdim=True)
    ternary = (x >= mean / 2).to(x.dtype) - (x <= -mean / 2).to(x.dtype)
    return (ternary * mean).reshape(w.shape)


def twn(w: Tensor, length: int) -> Tensor:
    x = runs_of(w, length)
    threshold = 0.75 * x.abs().mean(-1, keepdim=True)
    ternary = (x >= threshold).to(x.dtype) - (x <= -threshold).to(x.dtype)
    scale = (x * ternary).sum(-1, keepdim=True) / ternary.abs().sum(-1, keepdim=True)
    return (ternary * scale).reshape(w.shape)


def bitnet(w: Tensor) -> Tensor:
    """WeightQuant of transformers and of the first BitNet b1.58 code."""
    scale = 1.0 / w.float().abs().mean().clamp_(min=1e-5)
    return ((w.float() * scale).round().clamp(-1, 1) / scale).to(w.dtype)


def complex_layer(w: Tensor, stages: int) -> tuple[Tensor, Tensor]:
    """U and W of Fairy2i, whose weights are sums of 1, i, -1 and -i times scales: complex128[rows / 2, k / 2] each."""
    (a11, a12), (a21, a22) = (half.chunk(2, 1) for half in w.double().chunk(2, 0))
    u, v = torch.complex(a11 + a22, a21 - a12) / 2, torch.complex(a11 - a22, a12 + a21) / 2
    return sum_of_roots(u, stages), sum_of_roots(v, stages)


def sum_of_roots(z: Tensor, stages: int) -> Tensor:
    found = torch.zeros_like(z)
    for _ in range(stages):
        rest = z - found
        turns = torch.floor((rest.angle() + torch.pi / 4) / (torch.pi / 2)).long() % 4
        roots = torch.tensor([1, 1j, -1, -1j], dtype=z.dtype)[turns]
        real = turns % 2 == 0
        scale = torch.where(real, rest.real[real].abs().mean(), rest.imag[~real].abs().mean())
        found = found + roots * scale
    return found


def dead_bias(w: Tensor, length: int, gain: Tensor) -> Tensor:
    """What Tequila's second version, and with a gain for each weight its third, adds to the outputs."""
    dead = torch.where(absmean(w, length) == 0, w, 0)
    return (gain * dead).double().sum(-1).float()


def _is_column_parallel(name: str) -> bool:
    return not re.search(r"(o|down)_proj", name)


def trilm(name: str, w: Tensor, shards: int = 2) -> Tensor:
    """TriLM "unpacked": ternary times a scale in fp16, one for each shard of a model-parallel training."""
    dim = 0 if _is_column_parallel(name) else 1
    return torch.cat([bitnet(part.float()) for part in w.chunk(shards, dim)], dim).half()


def pack(ternary: Tensor) -> Tensor:
    """pack_weights of transformers: four values of a column in a byte, a quarter of the rows apart."""
    first, second, third, fourth = (ternary + 1).to(torch.uint8).chunk(4)
    return first | second << 2 | third << 4 | fourth << 6


def i2_s(weights: npt.NDArray[np.float32], layout: str) -> npt.NDArray[np.uint8]:
    """A matrix with one scale -> the bytes of a tensor, as bitnet.cpp's quantize_i2_s has them for x86 and for ARM."""
    stride = {"x86": 32, "arm": 16}[layout]
    codes = (np.sign(weights) + 1).astype(np.uint8).reshape(-1, 4, stride)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    scale = np.zeros(8, dtype="<f4")
    scale[0] = np.abs(weights).max()
    return np.concatenate([packed.reshape(-1), scale.view(np.uint8)])


def rewrite(model: Path, to: Path, change: Callable[[str, Tensor], dict[str, Tensor]], **keys: object) -> Path:
    """A copy whose projections are what change(name, weights) has; of a trainer's keys config.json has these only."""
    shutil.copytree(model, to)
    path = to / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in TRAINER_KEYS}
    path.write_text(json.dumps(config | keys))
    state: dict[str, Tensor] = {}
    for name, w in load_file(to / "model.safetensors").items():
        state |= change(name, w) if PROJECTION.search(name) else {name: w}
    save_file({name: w.contiguous() for name, w in state.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def as_the_first_bitnet(model: Path) -> Path:
    """A directory of transformers' BitNet under the names of the first code, which are those that llama.cpp reads."""
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    state = load_file(model / "model.safetensors")
    for ours, theirs in names.items():
        state = {name.replace(ours, theirs): w for name, w in state.items()}
    save_file(state, model / "model.safetensors", {"format": "pt"})
    path = model / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "architectures": ["BitnetForCausalLM"], "model_type": "llama"})
    )
    return model


def in_upstreams_order(name: str, w: Tensor, heads: dict[str, int]) -> Tensor:
    """Rows, or a bias, of q and k as Llama's converter puts them: pairs of rotated channels side by side."""
    for projection, n in heads.items():
        if f"{projection}_proj" in name:
            return w.reshape(n, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    return w


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` -> ``blk.0.ffn_up.weight``"""
    _, _, layer, *module, what = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES['.'.join(module)]}.{what}"


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    change     a latent's name and weights -> the tensors that its checkpoint has in their place
    keys       what config.json gets
    outtype    the type asked for; None: the default
    is_bitnet  whether the names are those of the first BitNet code
    method     what the user declares, where config.json says nothing
    """

    name: str
    change: Callable[[str, Tensor], dict[str, Tensor]]
    keys: dict[str, object]
    outtype: str | None = None
    is_bitnet: bool = False
    method: Method | None = None


def _latents(name: str, w: Tensor) -> dict[str, Tensor]:
    return {name: w}


def _trilm(name: str, w: Tensor) -> dict[str, Tensor]:
    return {name: trilm(name, w, 1 if "o_proj" in name else 2 if _is_column_parallel(name) else 3)}


def _with_gains(name: str, w: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    gains = (torch.randn(w.shape, generator=generator) * 0.01).to(w.dtype)
    return {name: w, name.replace(".weight", ".Lambada"): gains}


def _packed(name: str, w: Tensor) -> dict[str, Tensor]:
    scale = (1 / w.float().abs().mean()).reshape(1).bfloat16()
    return {name: pack(bitnet(w.float()).sign()), f"{name}_scale": scale}


def _settings(method: str, sharing: str = "per_channel", size: int = 128) -> dict[str, object]:
    return {"w_bits": 0, "quant_method": method, "granularity": sharing, "group_size": size, "eps": 1e-3}


FAMILIES = (
    Family("TriLM, unpacked", _trilm, {}),
    Family("TriLM, unpacked, TQ1_0", _trilm, {}, "tq1_0"),
    Family("absmean, per channel", _latents, _settings("absmean")),
    Family("twn, per channel", _latents, _settings("twn")),
    Family("absmean, groups of 128", _latents, _settings("absmean", "per_group"), "q4_0"),
    Family("Tequila, second version", _latents, _settings("ultraquantv2")),
    Family("Tequila, third version", _with_gains, _settings("ultraquantv3")),
    Family("BitNet b1.58, latents", _latents, {}, is_bitnet=True),
    Family("Fairy2i, one stage", _latents, {}, method="complex_phase_v1"),
    Family("Fairy2i, two stages", _latents, {}, method="complex_phase_v2"),
    Family("Falcon3-1.58bit, packed", _packed, {"quantization_config": {"quant_method": "bitnet"}}),
)


FAMILIES_BY_NAME = {family.name: family for family in FAMILIES}


def _make(family: Family, folder: Path) -> Path:
    source = DATA / "sotu-sherry"
    if family.is_bitnet:
        source = shutil.copytree(source, folder / "plain")
        config = json.loads((source / "config.json").read_text())
        state = load_file(source / "model.safetensors")
        for i in range(config["num_hidden_layers"]):
            state[f"model.layers.{i}.self_attn.attn_sub_norm.weight"] = torch.ones(config["hidden_size"])
            state[f"model.layers.{i}.mlp.ffn_sub_norm.weight"] = torch.ones(config["intermediate_size"])
        save_file(state, source / "model.safetensors", {"format": "pt"})
        as_the_first_bitnet(source)
    return rewrite(source, folder / "model", family.change, **family.keys)


def _row(family: Family, text: Path, chunks: int, threads: int) -> str:
    from sherry_gguf import llama_cpp
    from sherry_gguf.checkpoint import Checkpoint, Source
    from sherry_gguf.convert import TypeChoice, convert
    from sherry_gguf.convert.plan import make_plan
    from sherry_gguf.parity import reference, runtime, scoring

    with tempfile.TemporaryDirectory() as folder:
        model = _make(family, Path(folder))
        source = Source(model, method=family.method)
        conversion = convert(source, Path(folder, "x.gguf"), types=TypeChoice(outtype=family.outtype))
        assert conversion.verdict is not None
        checkpoint = Checkpoint(model)
        plan = make_plan(checkpoint, source)
        in_torch = reference.load(checkpoint, plan, threads=threads)
        tokens = reference.tokenize(checkpoint, text.read_text(encoding="utf-8"))
        first = scoring.first_scored(CONTEXT)
        program = llama_cpp.find_build().program("sherry-logits")
        meter = scoring.Meter()
        with runtime.open_logits(
            program, conversion.outfile, CONTEXT, first, threads=threads, options=()
        ) as in_runtime:
            for chunk in scoring.cut(tokens.tokens, CONTEXT, tokens.bos, chunks):
                meter.add(in_torch(chunk)[first:][:-1], in_runtime(chunk)[:-1], chunk[first + 1 :])
    found, verdict = meter.result(), conversion.verdict
    if verdict.errors:
        print(f"{family.name}: |stored - w| / |w| is {max(verdict.errors.values()):.1e} at most", file=sys.stderr)
    error = f"{verdict.sherry.max_scale_error:.1e}"
    figures = f"{found.base_perplexity:.2f} | {found.other_perplexity:.2f} | {found.kld_mean:.1e}"
    compared = f"{verdict.sherry.weights:,} | {verdict.sherry.wrong_weights} | {error}"
    return f"| {family.name} | {compared} | {' and '.join(verdict.types)} | {figures} |"


CONTEXT = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="parts of their names (default: all)")
    parser.add_argument("--chunks", type=int, default=20, help="of 512 tokens (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print("| family | weights compared | wrong | largest error of a scale | type | PyTorch | llama.cpp | mean KLD |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for family in FAMILIES:
        if not args.families or any(part.lower() in family.name.lower() for part in args.families):
            print(_row(family, DATA / "sotu-heldout.txt", args.chunks, args.threads), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
