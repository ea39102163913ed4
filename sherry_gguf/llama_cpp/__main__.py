"""``python -m sherry_gguf.llama_cpp build|which ...``: what ``sherry-gguf`` calls by the same names."""

import argparse
import sys

from sherry_gguf.cli import run_command

PROG = "python -m sherry_gguf.llama_cpp"

parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
parser.add_argument("command", choices=("build", "which"))
name = parser.parse_args(sys.argv[1:2]).command
sys.exit(run_command(name, sys.argv[2:], prog=f"{PROG} {name}"))
