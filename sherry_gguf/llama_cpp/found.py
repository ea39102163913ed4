"""What a build uses of a machine that has it: OpenSSL, to download models, and Node.js, to build the server's page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from functools import cache

NODE = (20, 19)  # the oldest that the page's build takes

_LACKS = {
    "LLAMA_OPENSSL=OFF": "without OpenSSL's headers (Debian: `apt install libssl-dev`) the programs download no models",
    "LLAMA_BUILD_UI=OFF": f"without Node.js {NODE[0]}.{NODE[1]} or newer, and npm, llama-server has no web page",
}


@cache
def found_defines() -> tuple[str, ...]:
    """NAME=VALUE for cmake, asked of the machine once a process."""
    return f"LLAMA_OPENSSL={_switch(_has_openssl())}", f"LLAMA_BUILD_UI={_switch(_has_node())}"


def lacks(defines: tuple[str, ...]) -> list[str]:
    """A line for each thing that the machine did not have, unless the user decided about it: defines, the last wins."""
    last = {define.partition("=")[0].partition(":")[0]: define for define in defines}
    return [line for define, line in _LACKS.items() if define in last.values()]


def _switch(on: bool) -> str:
    return "ON" if on else "OFF"


def _has_openssl() -> bool:
    """Whether the compiler finds its headers."""
    compiler = [*shlex.split(os.environ.get("CC") or "cc"), *shlex.split(os.environ.get("CFLAGS", ""))]
    done = _output([*compiler, "-E", "-x", "c", "-"], "#include <openssl/ssl.h>\n")
    return done is not None


def _has_node() -> bool:
    version = re.match(r"v(\d+)\.(\d+)", _output(["node", "--version"]) or "")
    return version is not None and (int(version[1]), int(version[2])) >= NODE and shutil.which("npm") is not None


def _output(command: list[str], text: str = "") -> str | None:
    """What a command prints; None where it cannot be run, or fails."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
