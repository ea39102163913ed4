"""llama-server on a free port, for as long as a test needs it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sherry_gguf import llama_cpp


@contextmanager
def served(runtime: llama_cpp.Build, file: Path, log: Path) -> Iterator[str]:
    """The address of a server that is ready to compute with the file. log: what it says is written there.

    It ends once it is idle: asked to end while it writes for a page that has gone, upstream's server waits for ever.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--host", "127.0.0.1", "--port", str(port), "-c", "256", "-np", "1", "-n", "48", "--ignore-eos"]
    with log.open("w") as said:
        server = subprocess.Popen(
            [runtime.program("llama-server"), "-m", file, *place], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            _wait_until(f"http://127.0.0.1:{port}/health", server, lambda health: health["status"] == "ok")
            yield f"http://127.0.0.1:{port}"
            _wait_until(f"http://127.0.0.1:{port}/slots", server, lambda slots: not slots[0]["is_processing"])
        finally:
            server.terminate()
            server.wait(30)


def _wait_until(address: str, server: subprocess.Popen[bytes], is_so: Callable[[Any], bool]) -> None:
    """Ask the server until its answer is so."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                if is_so(json.load(response)):
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{address} did not become what was waited for")
