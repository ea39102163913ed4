#!/usr/bin/env python3
"""Many clients at once on llama-server: are the answers those of one client, is memory flat, does it stay?

    python scripts/load_test.py MODEL.gguf [--requests 400] [--clients 8] [--slots 4] [--seed 1] [--build DIR]

First each of some prompts is answered alone, greedily. Then clients draw requests at random: those prompts again,
prompts of some hundred tokens, streams that the client leaves after the first words, bodies that are no JSON, and
fields that are no numbers. Only 127.0.0.1 is used. The status is 1 if the server ends, answers with another status
than a request deserves, or writes something else than it wrote alone.

llama-server keeps prompts in memory by default, up to 8 GiB; that is off here (--cache-ram 0), so that memory tells of
what gets lost.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

TEXT = "the people of this nation have with great labor and in good faith kept their union and its laws"
WORDS = TEXT.split()
PROMPTS = [" ".join(WORDS[i:] + WORDS[:i]).capitalize() for i in range(12)]
TOKENS = 24
LONG = 300  # words
WAIT = 120  # seconds for one answer
KINDS = ("again", "again", "long", "cancelled", "no JSON", "no number")


@dataclass
class Load:
    """What came of it; wrong: one line for each request that did not get what it should have."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rss_before: int = 0  # bytes of the server, once every slot has worked
    rss_after: int = 0
    seconds: float = 0.0
    exit_status: int | None = None  # after SIGTERM


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(program: Path, model: Path, slots: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server with its port, once it is ready; it is killed if it is still there in the end."""
    port = free_port()
    size = ["-np", str(slots), "-c", str(slots * 1024), "-t", "2", "--cache-ram", "0"]
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *size]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT
        while _status(port, "GET", "/health") != 200:
            if server.poll() is not None or time.monotonic() > end:
                raise SherryError(f"llama-server did not serve {model}: try {' '.join(command)}")
            time.sleep(0.1)
        yield server, port
    finally:
        server.kill()
        server.wait()


def _status(port: int, method: str, path: str, body: bytes | None = None) -> int | None:
    """None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def complete(port: int, prompt: str, tokens: int = TOKENS) -> str:
    """The greedy answer, the prompt read anew."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    try:
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        raise SherryError(f"status {response.status}: {answer}")
    return str(answer["content"])


def cancel(port: int, prompt: str) -> None:
    """Ask for a long stream, and leave after its first bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    asked = {"prompt": prompt, "n_predict": 400, "temperature": 0, "stream": True, "ignore_eos": True}
    try:
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        if not connection.getresponse().read(16):
            raise SherryError("a stream without a byte")
    finally:
        connection.close()


def request(port: int, draw: Random, alone: dict[str, str]) -> tuple[str, str | None]:
    """One request: its kind, and what is wrong about its answer."""
    kind, prompt = draw.choice(KINDS), draw.choice(PROMPTS)
    try:
        if kind == "again":
            answer = complete(port, prompt)
            return kind, None if answer == alone[prompt] else f"{answer!r} and not {alone[prompt]!r}"
        if kind == "long":
            complete(port, " ".join(draw.choices(WORDS, k=LONG)), 4)
            return kind, None
        if kind == "cancelled":
            cancel(port, prompt)
            return kind, None
        body = b'{"prompt": ' if kind == "no JSON" else b'{"prompt": "x", "n_predict": "many"}'
        status = _status(port, "POST", "/completion", body)
        return kind, None if status is not None and 400 <= status < 600 else f"status {status}"
    except (OSError, http.client.HTTPException, SherryError) as error:
        return kind, f"{type(error).__name__}: {error}"


def rss(server: subprocess.Popen[bytes]) -> int:
    """Bytes in memory, 0 where the system does not tell."""
    status = Path(f"/proc/{server.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def load(program: Path, model: Path, requests: int, clients: int, slots: int, seed: int) -> Load:
    """Serve a model to that many clients."""
    result = Load()
    with serving(program, model, slots) as (server, port), ThreadPoolExecutor(clients) as pool:
        alone = {prompt: complete(port, prompt) for prompt in PROMPTS}
        list(pool.map(lambda prompt: complete(port, f"{prompt} {' '.join(WORDS * (LONG // len(WORDS)))}", 4), PROMPTS))
        result.rss_before = rss(server)
        start = time.monotonic()
        for kind, wrong in pool.map(lambda i: request(port, Random(f"{seed} {i}"), alone), range(requests)):
            result.answers[kind] += 1
            if wrong:
                result.wrong.append(f"{kind}: {wrong}")
        result.seconds = time.monotonic() - start
        result.rss_after = rss(server)
        if server.poll() is not None:
            result.wrong.append(f"the server ended with {server.returncode}")
        elif {prompt: complete(port, prompt) for prompt in PROMPTS} != alone:
            result.wrong.append("alone again, an answer is another one")
        server.terminate()
        result.exit_status = server.wait(WAIT)
    return result


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--requests", type=int, default=400, metavar="N", help="(400)")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="at once (8)")
    parser.add_argument("--slots", type=int, default=4, metavar="N", help="of the server (4)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--build", type=Path, metavar="DIR", help="a build of your own: DIR/bin/llama-server")
    arguments: Any = parser.parse_args()
    try:
        build = arguments.build
        program = build / "bin/llama-server" if build else llama_cpp.find_build().program("llama-server")
        if not program.is_file():
            raise SherryError(f"{program}: no such file")
        sizes = arguments.requests, arguments.clients, arguments.slots
        result = load(program, arguments.model, *sizes, arguments.seed)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in result.wrong:
        print(line)
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(result.answers.items()))
    print(f"{arguments.requests} requests in {result.seconds:.1f} s ({told}): {len(result.wrong)} wrong")
    print(f"memory before {result.rss_before / 2**20:.1f} MiB, after {result.rss_after / 2**20:.1f} MiB")
    print(f"after SIGTERM: {result.exit_status}")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
