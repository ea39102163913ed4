#!/usr/bin/env python3
"""The evidence for experts: the demo model grown into a mixture of Sherry experts and a shared one in float.

    python scripts/evidence_mote.py [--work DIR] [--seeds 1 2] [--steps 200] [--experts 4] [--rounds 5]

As in MoTE (arXiv 2506.14435): the feed-forward layers of a trained dense model become a shared expert in float and
routed experts in Sherry, which all start as copies and are trained on. Beside it the same mixture with float experts
is trained on, and the dense model itself, with equal data and steps. The text is that of evidence_adapter.py, which
the demo model does not know; eight tenths are trained on, perplexities are those of the last tenth. Each trained
mixture is compared with PyTorch in llama.cpp, and timed beside the same weights as a file whose experts are F16.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from sherry_gguf import inspect_file, llama_cpp
from sherry_gguf.train import convert_to_sherry
from sherry_gguf.train.directory import copy_tokenizer, load_sherry
from sherry_gguf.train.layers import quantized_layers

ROOT = Path(__file__).parents[1]
MODEL, TEXT = ROOT / "tests/data/sotu-sherry", ROOT / "tests/data/sotu-heldout.txt"
CONTEXT = 256
EXPERTS = r"\.experts\."
TRAIN = ["--per-device-train-batch-size", 2, "--learning-rate", 5e-4, "--lr-scheduler-type", "cosine"]
TRAIN += ["--arenas-max", 0, "--ctx-size", CONTEXT, "--logging-steps", 50, "--save-strategy", "no"]
TESTS = "pp256,tg64"


@dataclass(frozen=True)
class Texts:
    """What is trained on, and what perplexities are of."""

    seen: Path
    scored: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="of timing, in which the two files take turns")
    parser.add_argument("--threads", type=int, default=1, help="of timing")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    text = TEXT.read_text(encoding="utf-8")
    texts = Texts(args.work / "mote-train.txt", args.work / "mote-score.txt")
    texts.seen.write_text(text[: len(text) * 8 // 10], encoding="utf-8")
    texts.scored.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")

    dense = args.work / "dense.gguf"
    sherry_gguf("convert", MODEL, "--outfile", dense, "--force")
    print(f"dense, before: perplexity {perplexity(dense, texts.scored):.2f} in llama.cpp", flush=True)
    for seed in args.seeds:
        starts = {
            sherry: args.work / f"mote-start-{'sherry' if sherry else 'float'}-{seed}" for sherry in (False, True)
        }
        for sherry, start in starts.items():
            grow(start, args.experts, seed, sherry)
        trainings = {
            "dense": (MODEL, ()),
            "float experts": (starts[False], ("--method", "float")),
            "Sherry experts": (starts[True], ("--sherry-layers", EXPERTS)),
        }
        for name, (model, how) in trainings.items():
            out = args.work / f"mote-{name.replace(' ', '-')}-{seed}"
            print(f"seed {seed}, {name}: {train(model, out, texts, args.steps, seed, *how)} in PyTorch", flush=True)
        files = write(out, args.work / f"mote-{seed}")
        print(f"seed {seed}, in llama.cpp: {compare(out, files['SHERRY'], texts.scored)}", flush=True)
        for name, file in files.items():
            print(f"seed {seed}, experts in {name}: {sizes(file)}", flush=True)
        if args.rounds:
            print(f"seed {seed}: {rates(files, args.rounds, args.threads, args.work)}", flush=True)


@torch.no_grad()
def grow(directory: Path, experts: int, seed: int, sherry: bool) -> None:
    """Write the demo model as an ERNIE 4.5 MoE that computes the same: half of each layer comes from the shared expert,
    half from two of the routed ones, and all are copies.

    Of what the layers multiply with, but that routed experts in Sherry get the latents.
    """
    torch.manual_seed(seed)
    dense, tokenizer = load_sherry(MODEL)
    old: Any = dense.config
    config = transformers.Ernie4_5_MoeConfig(
        **{key: getattr(old, key) for key in SAME}, moe_intermediate_size=old.intermediate_size, moe_k=2,
        moe_num_experts=experts, moe_num_shared_experts=1, moe_layer_start_index=0, pad_token_id=None,
        head_dim=old.head_dim,
        # of dense layers, which there are not; upstream's converter divides it to get the size of the shared expert
        intermediate_size=old.intermediate_size * old.num_key_value_heads,
    )  # fmt: skip
    model = transformers.Ernie4_5_MoeForCausalLM(config).eval()
    latents = dense.state_dict()
    weights = latents | {f"{name}.weight": layer.quantized_weight() for name, layer in quantized_layers(dense).items()}
    state = model.state_dict()
    for name, found in state.items():
        if name in weights:
            turned = name.endswith(("q_proj.weight", "k_proj.weight"))
            found.copy_(interleaved(weights[name], old.head_dim) if turned else weights[name])
        elif ".mlp." in name and ".gate." not in name:
            layer = name[: name.index(".mlp.") + len(".mlp.")]
            source = latents if sherry and ".experts." in name else weights
            gate, up, down = (source[f"{layer}{part}_proj.weight"] for part in ("gate", "up", "down"))
            parts = {"gate_proj": gate, "up_proj": up, "down_proj": down / 2, "gate_up_proj": torch.cat([gate, up])}
            found.copy_(next(part for key, part in parts.items() if f".{key}" in name))  # of experts, each of them
        elif name.endswith("mlp.gate.weight"):
            found.normal_(std=config.initializer_range)
    model.load_state_dict(state)
    model.save_pretrained(directory)
    copy_tokenizer(MODEL, directory)
    # of an ERNIE's tokenizer.model transformers makes a tokenizer that writes no first space and no BOS
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    if sherry:
        convert_to_sherry(model, layers=EXPERTS)
    tokens = torch.tensor([tokenizer(TEXT.read_text(encoding="utf-8")[:2000])["input_ids"][:CONTEXT]])
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=1e-3, atol=1e-3)


SAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id",
)  # fmt: skip


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of queries or keys for a rotation of neighbours, where Llama's turns the halves of a head."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape_as(weight)


def train(model: Path, out: Path, texts: Texts, steps: int, seed: int, *how: object) -> str:
    """Train on, as flags say; the held-out perplexity, in words."""
    shutil.rmtree(out, ignore_errors=True)
    where = ["--model", model, "--data", texts.seen, "--eval-data", texts.scored, "--out", out]
    said = sherry_gguf("train", *where, "--max-steps", steps, "--seed", seed, *TRAIN, *how)
    return str(re.findall(r"^held-out (perplexity [\d.]+)", said, re.MULTILINE)[-1])


def write(model: Path, stem: Path) -> dict[str, Path]:
    """Type of the experts -> a file of the trained weights."""
    files = {name: stem.with_name(f"{stem.name}-{name}.gguf") for name in ("SHERRY", "F16")}
    sherry_gguf("convert", model, "--outfile", files["SHERRY"], "--force")
    sherry_gguf("convert", model, "--outfile", files["F16"], "--force", "--tensor-type", "_exps=f16")
    return files


def compare(model: Path, file: Path, text: Path) -> str:
    """How far llama.cpp is from PyTorch; the command fails where that is more than rounding explains."""
    compared = file.with_suffix(".json")
    sherry_gguf("parity", model, file, "--text", text, "--ctx-size", CONTEXT, "--no-split", "--json", compared)
    found = json.loads(compared.read_text(encoding="utf-8"))["total"]
    change, top = 100 * (found["perplexity_ratio"] - 1), 100 * found["same_top1"]
    return (
        f"perplexity {found['base_perplexity']:.2f} {change:+.3f}%, mean KL divergence {found['kld_mean']:.1e} nats, "
        f"the same first token at {top:.2f}%"
    )


def sizes(file: Path) -> str:
    """Bytes of a file, and of the routed experts in it."""
    experts = sum(found.tensor.n_bytes for found in inspect_file(file).tensors if "_exps" in found.tensor.name)
    return f"{file.stat().st_size:,} bytes, {experts:,} of them routed experts"


def rates(files: dict[str, Path], rounds: int, threads: int, work: Path) -> str:
    """Tokens a second of the files, which take turns, and how many times those of F16 are those of SHERRY."""
    figures = work / "mote-speed.json"
    models = [part for file in files.values() for part in ("--model", file)]
    flags = ["--tests", TESTS, "--rounds", rounds, "--threads", threads, "--json", figures]
    call(sys.executable, ROOT / "scripts/bench_llama.py", *models, *flags)
    results = json.loads(figures.read_text(encoding="utf-8"))["results"]
    rate = {(row["model"], row["test"]): row["tok_s"] for row in results}
    parts = []
    for test in TESTS.split(","):
        sherry, f16 = (rate[files[name].name, test] for name in ("SHERRY", "F16"))
        parts.append(f"{test} {sherry:.0f} and {f16:.0f}, {sherry / f16:.2f} times")
    return f"tokens/s of SHERRY and F16, {threads} threads: {'; '.join(parts)}"


def perplexity(model: Path, text: Path) -> float:
    """By llama-perplexity."""
    said = call(llama_cpp.find_build().program("llama-perplexity"), "-m", model, "-f", text, "-c", CONTEXT)
    return float(re.findall(r"Final estimate: PPL = ([\d.]+)", said)[-1])


def sherry_gguf(*arguments: object) -> str:
    """Run a command of this package."""
    return call(sys.executable, "-m", "sherry_gguf", *arguments)


def call(*command: object) -> str:
    """Run a program, and return all that it prints; where it fails, that is shown."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
