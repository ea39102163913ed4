"""A process that has imported the converter, and forks for each conversion: imports take longer than all the rest.

On stdin a line of JSON for each request, on stdout one line for its answer: ``start`` gives the child's process id,
``is_running`` whether it has not ended, ``wait`` its exit status once it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from sherry_gguf.cli import main
from sherry_gguf.interrupt import leaving_at_interrupt


def start(arguments: list[str], limits: list[tuple[int, int]], stdout: str, stderr: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until there is something to interrupt
    if (child := os.fork()) != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return child
    for name, number in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    status: Any = 1
    try:
        for limit, size in limits:
            more = taken(limit)
            resource.setrlimit(limit, (size + more, size + more))
        with leaving_at_interrupt():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def taken(limit: int) -> int:
    """Bytes of what is limited that this process has already."""
    field = {resource.RLIMIT_AS: "VmSize:", resource.RLIMIT_DATA: "VmData:"}.get(limit)
    lines = Path("/proc/self/status").read_text().splitlines() if field else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(str(field)))


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        assert main(["convert", sys.argv[1], "--dry-run"]) == 0  # which imports what is imported late
    print("ready", flush=True)
    for line in sys.stdin:
        name, *values = json.loads(line)
        print({"start": start, "is_running": is_running, "wait": wait}[name](*values), flush=True)
