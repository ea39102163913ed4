"""What every ``--help`` looks like: one line of usage, what the command does, three examples, flags in four groups.

A command's module has ``USAGE`` (what follows its name), ``EXAMPLES`` (command lines), its docstring, and configure().
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import textwrap
from dataclasses import dataclass
from typing import Any, Protocol


class Flags(Protocol):
    """A parser or a group of its flags."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...
    def add_mutually_exclusive_group(self, *, required: bool = False) -> argparse._MutuallyExclusiveGroup: ...


@dataclass(frozen=True)
class Groups:
    """Four groups of flags, in the order of the page.

    basic   what most people give
    output  what is written, and what is printed
    checks  what is compared, and with which limits
    expert  what few people need
    """

    basic: Flags
    output: Flags
    checks: Flags
    expert: Flags


def groups(parser: argparse.ArgumentParser) -> Groups:
    """The four groups of a parser; those that get no flag are not shown."""
    made = [parser.add_argument_group(title) for title in ("Basic", "Output", "Checks", "Expert")]
    made[0].add_argument("-h", "--help", action="help", help="show this page")
    return Groups(*made)


def command_parser(name: str, prog: str | None = None) -> tuple[argparse.ArgumentParser, Any]:
    """The parser of a command, and the command's module, which is imported for it."""
    module = importlib.import_module(f"sherry_gguf.commands.{name}")
    new_parser = getattr(module, "new_parser", argparse.ArgumentParser)
    prog = prog or f"sherry-gguf {name}"
    parser = new_parser(
        prog=prog,
        usage=f"{prog} {module.USAGE}",
        description=described(module.__doc__ or "", module.EXAMPLES),
        formatter_class=Page,
        add_help=False,
    )
    module.configure(parser)
    return parser, module


def described(what: str, examples: tuple[str, ...]) -> str:
    """Paragraphs and command lines -> the page's upper part, as wide as the screen."""
    paragraphs = [textwrap.fill(" ".join(part.split()), _width()) for part in what.strip().split("\n\n")]
    return "\n\n".join([*paragraphs, "Examples:\n" + "\n".join(f"  {line}" for line in examples)])


class Page(argparse.RawDescriptionHelpFormatter):
    """Lines of the description stay as they are."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=_width() * 3 // 8, width=_width(), **settings)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120) - 2
