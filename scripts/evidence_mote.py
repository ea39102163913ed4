#!/usr/bin/env python3
"""The evidence for experts: the demo model grown into a mixture of Sherry experts and a shared one in float.

    python scripts/evidence_mote.py [--work DIR] [--seed 1] [--steps 200] [--experts 4]

As in MoTE (arXiv 2506.14435): the feed-forward layers of a trained dense model become a shared expert in float and
routed experts in Sherry, which all start as copies and are trained on. The text is that of evidence_adapter.py, which
the demo model does not know; eight tenths are trained on, perplexities are those of the last tenth. Ends with the
converted file in llama.cpp beside PyTorch, and beside the same model whose experts are F16.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from sherry_gguf import llama_cpp
from sherry_gguf.train.directory import copy_tokenizer, load_sherry
from sherry_gguf.train.layers import quantized_layers

DATA = Path(__file__).parents[1] / "tests/data"
MODEL, TEXT = DATA / "sotu-sherry", DATA / "sotu-heldout.txt"
CONTEXT = 256
EXPERTS = r"\.experts\."
TRAIN = ["--per-device-train-batch-size", 4, "--learning-rate", 5e-4, "--lr-scheduler-type", "cosine"]
TRAIN += ["--arenas-max", 0, "--logging-steps", 50, "--disable-tqdm", "true", "--save-strategy", "no"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--experts", type=int, default=4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    text = TEXT.read_text(encoding="utf-8")
    seen, scored = args.work / "mote-train.txt", args.work / "mote-score.txt"
    seen.write_text(text[: len(text) * 8 // 10], encoding="utf-8")
    scored.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")

    start, trained = args.work / "mote-start", args.work / "mote"
    for directory in (start, trained):
        shutil.rmtree(directory, ignore_errors=True)
    grow(start, args.experts, args.seed)
    train = [
        "train",
        "--model",
        start,
        "--data",
        seen,
        "--out",
        trained,
        "--ctx-size",
        CONTEXT,
        "--max-steps",
        args.steps,
    ]
    sherry_gguf(*train, *TRAIN, "--seed", args.seed, "--sherry-layers", EXPERTS)

    in_sherry, in_f16 = args.work / "mote-SHERRY.gguf", args.work / "mote-f16.gguf"
    sherry_gguf("convert", trained, "--outfile", in_sherry, "--force")
    sherry_gguf("convert", trained, "--outfile", in_f16, "--force", "--tensor-type", "_exps=f16")
    compared = args.work / "mote.json"
    sherry_gguf("parity", trained, in_sherry, "--text", scored, "--ctx-size", CONTEXT, "--no-split", "--json", compared)
    step = json.loads(compared.read_text(encoding="utf-8"))["steps"][-1]["divergence"]
    before = args.work / "mote-before.gguf"
    sherry_gguf("convert", MODEL, "--outfile", before, "--force")
    print(f"dense, before: perplexity {perplexity(before, scored):.2f}, {before.stat().st_size:,} bytes")
    print(
        f"seed {args.seed}, {args.steps} steps: perplexity {step['base_perplexity']:.2f} in PyTorch, in llama.cpp "
        f"{100 * (step['perplexity_ratio'] - 1):+.3f}%, mean KL divergence {step['kld_mean']:.1e}"
    )
    for name, file in ("SHERRY", in_sherry), ("F16", in_f16):
        rates = ", ".join(f"{test} {rate:.0f}" for test, rate in rates_of(file).items())
        print(f"experts in {name}: {file.stat().st_size:,} bytes, tokens/s {rates}")


@torch.no_grad()
def grow(directory: Path, experts: int, seed: int) -> None:
    """Write the demo model as an ERNIE 4.5 MoE that computes the same: half of each layer comes from the shared expert,
    half from two of the routed ones, and all are copies."""
    torch.manual_seed(seed)
    dense, _ = load_sherry(MODEL)
    old: Any = dense.config
    config = transformers.Ernie4_5_MoeConfig(
        **{key: getattr(old, key) for key in SAME}, moe_intermediate_size=old.intermediate_size, moe_k=2,
        moe_num_experts=experts, moe_num_shared_experts=1, moe_layer_start_index=0, pad_token_id=None,
        head_dim=old.head_dim,
    )  # fmt: skip
    model = transformers.Ernie4_5_MoeForCausalLM(config)
    trained = dense.state_dict() | {
        f"{name}.weight": layer.quantized_weight() for name, layer in quantized_layers(dense).items()
    }
    state = model.state_dict()
    for name, found in state.items():
        if name in trained:
            turned = name.endswith(("q_proj.weight", "k_proj.weight"))
            found.copy_(interleaved(trained[name], old.head_dim) if turned else trained[name])
        elif ".mlp." in name and ".gate." not in name:
            layer = name[: name.index(".mlp.") + len(".mlp.")]
            gate, up, down = (trained[f"{layer}{part}_proj.weight"] for part in ("gate", "up", "down"))
            parts = {"gate_proj": gate, "up_proj": up, "down_proj": down / 2, "gate_up_proj": torch.cat([gate, up])}
            found.copy_(next(part for key, part in parts.items() if f".{key}" in name))  # of experts, each of them
        elif name.endswith("mlp.gate.weight"):
            found.normal_(std=config.initializer_range)
    model.load_state_dict(state)
    model.to(torch.bfloat16).save_pretrained(directory)
    copy_tokenizer(MODEL, directory)


SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id",
)  # fmt: skip


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of queries or keys for a rotation of neighbours, where Llama's turns the halves of a head."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape_as(weight)


def sherry_gguf(*arguments: object) -> None:
    """Run a command of this package."""
    subprocess.run([sys.executable, "-m", "sherry_gguf", *map(str, arguments)], check=True)


def perplexity(model: Path, text: Path) -> float:
    """By llama-perplexity."""
    command = [llama_cpp.find_build().program("llama-perplexity"), "-m", model, "-f", text, "-c", CONTEXT]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    assert found is not None, done.stderr
    return float(found[1])


def rates_of(model: Path) -> dict[str, float]:
    """Tokens a second that llama-bench reads and writes."""
    command = [llama_cpp.find_build().program("llama-bench"), "-m", model, "-p", 256, "-n", 64, "-o", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["avg_ts"] for r in json.loads(done.stdout)}


if __name__ == "__main__":
    main()
