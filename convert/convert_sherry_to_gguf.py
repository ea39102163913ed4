#!/usr/bin/env python3
"""The converter where llama.cpp's users look for it: the same as `sherry-gguf convert`, run from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sherry_gguf.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("convert", prog=Path(__file__).name))
