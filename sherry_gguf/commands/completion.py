"""Print a script with which the shell completes commands, flags and their values; nothing is started at a TAB."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sherry_gguf.commands import COMMANDS, EXTRAS
from sherry_gguf.commands.help_page import command_parser, groups
from sherry_gguf.errors import Way

WAYS: Mapping[Way, str] = {}

USAGE = "SHELL"

EXAMPLES = (
    'eval "$(sherry-gguf completion bash)"',
    "sherry-gguf completion bash > ~/.local/share/bash-completion/completions/sherry-gguf",
    "sherry-gguf completion zsh > ~/.zfunc/_sherry-gguf",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    import shtab

    groups(parser).basic.add_argument("shell", metavar="SHELL", choices=shtab.SUPPORTED_SHELLS, help="%(choices)s")


def execute(args: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_whole_parser(shtab.FILE), args.shell))
    return 0


def _whole_parser(file: Any) -> argparse.ArgumentParser:
    """All commands with all of their flags. file: what shtab calls the name of a file."""
    whole = argparse.ArgumentParser(prog="sherry-gguf")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        try:
            own = command_parser(name)[0]
        except ModuleNotFoundError:
            if name not in EXTRAS:
                raise
            own = argparse.ArgumentParser(add_help=False)  # an extra that is not installed
        for action in own._actions:
            if action.type is Path:
                action.complete = file  # type: ignore[attr-defined]
        commands.add_parser(name, help=summary, parents=[own], add_help=False)
    return whole
