"""What a build is made with: cmake's settings, the compiler's environment, and the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.found import found_defines

DEFINES = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=ON",
    # programs find the libraries beside them, wherever the directory is copied
    "CMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "LLAMA_BUILD_TESTS=ON",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_SERVER=ON",
    # the server's web page is built with npm (found.py), and not downloaded
    "LLAMA_USE_PREBUILT_UI=OFF",
    # layers on other machines; RDMA would depend on the libraries of the machine that builds
    "GGML_RPC=ON",
    "GGML_RPC_RDMA=OFF",
    # the Metal backend claims to multiply by types it has no kernel for
    "GGML_METAL=OFF",
    # on by default on macOS; a BLAS backend takes products of 32 tokens and more from the kernels, in floats
    "GGML_BLAS=OFF",
)
ENVIRONMENT = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")  # what cmake reads

# The instruction sets a compiler uses unasked. The kernel's list of flags holds more, and changes with the kernel.
X86_FLAG = re.compile(r"abm|adx|aes|amx|avx|bmi|f16c|fma|gfni|movbe|pclmul|popcnt|pni|sha|sse|ssse|tbm|xop")


@dataclass(frozen=True)
class Config:
    """What a user asks a build for beside its targets."""

    source: str | None = None  # resolved path of a llama.cpp checkout; None for the pin
    defines: tuple[str, ...] = ()  # NAME=VALUE, after DEFINES
    environment: tuple[tuple[str, str], ...] = ()
    found: tuple[str, ...] = ()  # likewise, before ``defines``: what the machine has (found.py)
    prebuilt: str | None = None  # SHA-256 of an archive that was made elsewhere; then nothing else counts

    @classmethod
    def of(cls, source: Path | None, defines: tuple[str, ...]) -> Config:
        """The configuration of these arguments in the present environment. Raises SherryError on bad ones."""
        for define in defines:
            if not re.match(r"\w+(:\w+)?=", define):
                raise SherryError(f"-D {define}: expected NAME=VALUE")
        environment = tuple((name, os.environ[name]) for name in ENVIRONMENT if os.environ.get(name))
        return cls(
            None if source is None else str(source.expanduser().resolve()), defines, environment, found_defines()
        )

    @classmethod
    def load(cls, file: Path) -> Config:
        """Read what save() wrote; a file that is missing or not ours is the default configuration."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            environment = tuple((str(name), str(value)) for name, value in fields["environment"])
            found = tuple(map(str, fields["found"])) if "found" in fields else found_defines()
            return cls(fields["source"], tuple(fields["defines"]), environment, found, fields.get("prebuilt"))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls.of(None, ())

    def save(self, file: Path) -> None:
        """Write it as JSON, atomically. Needs the cache's lock."""
        partial = file.with_name(f"partial-{file.name}")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(file)

    @property
    def checkout(self) -> Path | None:
        """The checkout to build, None for the pin."""
        return None if self.source is None else Path(self.source)

    def cmake_arguments(self) -> list[str]:
        """-D options; of two with one name cmake takes the last."""
        return [f"-D{define}" for define in (*DEFINES, *self.found, *self.defines)]

    def identity(self) -> str:
        """All that decides what the compiler makes of a source: settings, environment, machine."""
        return json.dumps([DEFINES, self.found, self.defines, self.environment, self._machine()])

    def flags(self) -> str:
        """What a build of this is asked for beside the pin's defaults: empty, or flags with a space before each."""
        source = [] if self.source is None else ["--source", self.source]
        return "".join(f" {flag}" for flag in (*source, *(f"-D {define}" for define in self.defines)))

    def _machine(self) -> str:
        """System and processor; for a native build also what the processor can do: a home directory may be
        shared by machines that differ."""
        native = not any(re.match(r"GGML_NATIVE(:\w+)?=(OFF|0|NO|FALSE)$", d, re.IGNORECASE) for d in self.defines)
        return f"{platform.system()} {platform.machine()} {cpu_features() if native else ''}"


def cpu_features() -> str:
    """The processor's instruction sets in one string, equal on machines that run each other's native builds."""
    if platform.system() == "Darwin":
        names = ["machdep.cpu.brand_string"]
        return subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True).stdout.strip()
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    if flags := re.search(r"^flags\s*:(.*)$", info, re.MULTILINE):
        return " ".join(sorted(flag for flag in flags[1].split() if X86_FLAG.match(flag)))
    # Arm: cores of one machine may differ
    return " ".join(sorted(set(re.findall(r"^(?:Features|CPU part)\s*:\s*(.*)$", info, re.MULTILINE))))
