#!/usr/bin/env python3
"""The evidence for training: all methods with equal data, steps and seeds.

    python scripts/evidence_training.py methods   trains each method with each seed, two at a time, one core each
    python scripts/evidence_training.py table     their perplexities, and pictures of gradients and latents
    python scripts/evidence_training.py files     their GGUF files: size, perplexity and speed in llama.cpp
    python scripts/evidence_training.py schedules a float model, trained on with and without Arenas, one core
    python scripts/evidence_training.py schedules-table   their perplexities, gradients and trapped latents
    python scripts/evidence_training.py smollm2   SmolLM2-135M: before, quantized as it is, and fine-tuned

Everything goes to --work. What is done is not done again; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evidence import files, methods, schedules, schedules_table, smollm2, table

STAGES = {
    "methods": methods.run,
    "table": table.run,
    "files": files.run,
    "schedules": schedules.run,
    "schedules-table": schedules_table.run,
    "smollm2": smollm2.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of docs/training.md)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="some of the methods (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="of timing files")
    args = parser.parse_args()
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
