import sys

from sherry_gguf.cli import run_command

sys.exit(run_command("train"))
