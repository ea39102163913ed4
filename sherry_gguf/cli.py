"""``sherry-gguf COMMAND``: one command line in front of the stations."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sherry_gguf import __version__
from sherry_gguf.commands import COMMANDS, EXTRAS
from sherry_gguf.commands.help_page import Page, command_parser, described
from sherry_gguf.errors import SherryError, says_no_memory
from sherry_gguf.interrupt import leaving_at_interrupt

EXAMPLES = ("sherry-gguf build", "sherry-gguf convert model", "sherry-gguf convert --help")


@contextmanager
def _cleaning_up_when_terminated() -> Iterator[None]:
    """Make SIGTERM an exception, which removes temporary files as Ctrl-C does; the status is the shell's for it."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    elsewhere = threading.current_thread() is not threading.main_thread()  # where Python sets no handlers
    if elsewhere or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Do one command on argv (default: the process's) and return its exit status.

    Bad input (SherryError) is one line on stderr and status 1, and so are an OSError and too little memory; bad usage
    is argparse's status 2.
    """
    try:
        with leaving_at_interrupt():
            parser, module = command_parser(name, prog)
            args = parser.parse_args(argv)
    except ModuleNotFoundError as error:
        if name not in EXTRAS:
            raise
        print(f"sherry-gguf {name}: error: needs {error.name}; pip install 'sherry-gguf[{name}]'", file=sys.stderr)
        return 1
    try:
        with _cleaning_up_when_terminated():
            return int(module.execute(args))
    except SherryError as error:
        print(f"{parser.prog}: error: {error.worded(module.WAYS)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output went away (`| head`): nothing to say, and no second error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # what no command foresaw: a disk that is full, a file that cannot be read
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"{parser.prog}: error: {' '.join(what.split())}", file=sys.stderr)
        return 1
    except Exception as error:
        if not says_no_memory(error):
            raise
        said = " ".join(str(error).split())
        print(f"{parser.prog}: error: there is not enough memory{said and f', {said}'}", file=sys.stderr)
        return 1


class _Version(argparse.Action):
    """Print the version and the pin, which is read only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from sherry_gguf.llama_cpp.upstream import PatchSet

        print(f"sherry-gguf {__version__}, with the llama.cpp of {PatchSet.load().pin}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script ``sherry-gguf``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with leaving_at_interrupt():
        parser = argparse.ArgumentParser(
            prog="sherry-gguf",
            description=described("Run 1.25-bit Sherry models with llama.cpp.", EXAMPLES),
            formatter_class=Page,
        )
        parser.add_argument(
            "--version", action=_Version, nargs=0, help="print the version, and which llama.cpp is built"
        )
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for name, summary in COMMANDS.items():
            commands.add_parser(name, help=summary, add_help=False)
        command = parser.parse_args(argv[:1]).command
    return run_command(command, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
