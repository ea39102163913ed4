#!/usr/bin/env python3
"""The evidence for adapters: a LoRA over the demo model, as it is and made sparse and ternary, scored by llama.cpp.

    python scripts/evidence_adapter.py [--work DIR] [--seeds 1 2] [--steps 100]

The demo model knows addresses up to 2000. Of those after it, tests/data/sotu-heldout.txt, the LoRA is trained on the
first eight tenths; alpha is chosen on the ninth, and perplexities are those of the last.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from sherry_gguf import llama_cpp
from sherry_gguf.adapter import make_adapter
from sherry_gguf.adapter.lora import WEIGHTS, open_lora
from sherry_gguf.adapter.stored import convert_lora
from sherry_gguf.train.directory import load_sherry

DATA = Path(__file__).parents[1] / "tests/data"
MODEL, TEXT = DATA / "sotu-sherry", DATA / "sotu-heldout.txt"
CONTEXT, BATCH, RANK, RATE = 256, 4, 32, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.2])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    text = TEXT.read_text(encoding="utf-8")
    cuts = [0, len(text) * 8 // 10, len(text) * 9 // 10, len(text)]
    train, choose, score = (text[a:b] for a, b in itertools.pairwise(cuts))
    chosen_on, scored_on = args.work / "adapter-choose.txt", args.work / "adapter-score.txt"
    chosen_on.write_text(choose, encoding="utf-8")
    scored_on.write_text(score, encoding="utf-8")

    base = args.work / "adapter-base.gguf"
    command = [sys.executable, "-m", "sherry_gguf", "convert", MODEL, "--outfile", base, "--force"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    print(f"base: perplexity {perplexity(base, scored_on):.2f}", flush=True)
    for seed in args.seeds:
        lora = args.work / f"lora-{seed}"
        train_lora(lora, train, seed, args.steps)
        plain = args.work / f"lora-{seed}-f16.gguf"
        convert_lora(open_lora(lora, None), lora, plain, "f16")
        said = f"PEFT's file {(lora / WEIGHTS).stat().st_size:,} bytes, as F16 GGUF {plain.stat().st_size:,}"
        print(f"seed {seed}, LoRA: perplexity {perplexity(base, scored_on, plain):.2f}, {said}", flush=True)
        for density in args.densities:
            out = args.work / f"lora-{seed}-{density}.gguf"
            made = make_adapter(lora, out, density=density, texts=[chosen_on], ctx_size=CONTEXT, force=True)
            scored = perplexity(base, scored_on, out)
            how = f"seed {seed}, density {density}, alpha {made.alpha:g}"
            print(f"{how}: perplexity {scored:.2f}, {made.n_bytes:,} bytes", flush=True)


def train_lora(directory: Path, text: str, seed: int, steps: int) -> None:
    """Write a LoRA of all linear layers."""
    torch.manual_seed(seed)
    base, tokenizer = load_sherry(MODEL)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config).train()
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - CONTEXT, (BATCH,)).tolist()
        batch = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.peft_config["default"].base_model_name_or_path = str(MODEL)
    model.save_pretrained(directory)


def perplexity(model: Path, text: Path, lora: Path | None = None) -> float:
    """By llama-perplexity."""
    command = [llama_cpp.find_build().program("llama-perplexity"), "-m", model, "-f", text, "-c", CONTEXT]
    more = [] if lora is None else ["--lora", lora]
    done = subprocess.run([str(part) for part in [*command, *more]], capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    assert found is not None, done.stderr
    return float(found[1])


if __name__ == "__main__":
    main()
