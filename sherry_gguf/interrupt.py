"""Ctrl-C while nothing is there to clean up: one line, and the end. This module is imported before all others."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def _leave(*_: object) -> None:
    os.write(2, b"sherry-gguf: interrupted\n")
    os._exit(130)  # a shell's status for it


# `python -m sherry_gguf.convert` imports that package for seconds before any line of ours that could guard it. What
# it starts at the end, run_command, gives Ctrl-C its usual meaning.
if (
    sys.argv[:1] == ["-m"]
    and any(word.startswith("sherry_gguf") for word in sys.orig_argv[1:])
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _leave)


@contextmanager
def leaving_at_interrupt() -> Iterator[None]:
    """Around imports: let Ctrl-C end the process at once, as there is nothing yet to clean up.

    As an exception it would become whatever a library makes of one while it is being imported.
    """
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave)
    )
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
