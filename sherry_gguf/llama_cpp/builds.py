"""Builds of the patched llama.cpp: made, kept, found."""

from __future__ import annotations

import ctypes
import filecmp
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.llama_cpp import prebuilt, tree
from sherry_gguf.llama_cpp.cache import PARTIAL, cache_dir, keep_recent, key, locked, used
from sherry_gguf.llama_cpp.compiling import check_compilers, compile_targets
from sherry_gguf.llama_cpp.config import Config
from sherry_gguf.llama_cpp.upstream import PatchSet

PROGRAMS = (
    "llama-cli",
    "llama-completion",
    "llama-server",
    "llama-bench",
    "llama-perplexity",
    "llama-quantize",
    "llama-imatrix",
    "llama-tokenize",
    "ggml-rpc-server",
    "sherry-logits",
)
FIRST = "llama-cli"  # built before the others where it is among them, and of use from then on
# test-quant-type-selection is not among them: it asks a model hub for its data
TESTS = ("test-quantize-fns", "test-backend-ops", "test-gguf", "test-barrier")

STAMP = prebuilt.STAMP  # in a build's directory: the targets that are complete
LAST = "last-build.json"  # in the cache: the configuration `sherry-gguf build` was run with last


@dataclass(frozen=True)
class Build:
    """Programs and libraries of one patched tree, built with one configuration."""

    bin_dir: Path
    source: Path
    targets: tuple[str, ...]

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs that were built."""
        return tuple(target for target in self.targets if (self.bin_dir / target).is_file())

    def program(self, name: str) -> Path:
        """Path of a program; it runs from anywhere. Raises SherryError for one that was not built."""
        if name not in self.programs:
            ways = [Way.BUILD_TESTS] if name in TESTS else [Way.BUILD_TARGET(name)]
            raise SherryError(f"no program {name!r} is built; there are {', '.join(self.programs)}", *ways)
        return self.bin_dir / name

    def lib(self, name: str) -> ctypes.CDLL:
        """Load a library with those it needs: lib("ggml-base") is libggml-base.so, .dylib on macOS."""
        path = self.bin_dir / f"lib{name}{'.dylib' if platform.system() == 'Darwin' else '.so'}"
        if not path.exists():
            raise SherryError(f"no shared library {name!r} is built: {path} does not exist")
        return ctypes.CDLL(str(path))


def build(
    targets: Sequence[str] | None = None,
    *,
    tests: bool = False,
    source: Path | None = None,
    defines: Sequence[str] = (),
    jobs: int | None = None,
    patches: PatchSet | None = None,
) -> Build:
    """Fetch, patch and build llama.cpp in the cache; a build that is there and has the targets is returned at once.

    targets: names of ninja targets (default PROGRAMS). tests: TESTS too. source: a checkout of one's own, in
    its present state, instead of the pin. defines: NAME=VALUE for cmake. jobs: compilers at a time.
    CC, CXX, CFLAGS, CXXFLAGS and LDFLAGS count as cmake reads them. An interrupted build goes on where it stopped.
    It does not change what find_build() finds unless source and defines are the same; the command does (remember()).
    """
    patches = patches or PatchSet.load()
    config = Config.of(source, tuple(defines))
    wanted = [*(targets or PROGRAMS), *(TESTS if tests else ())]
    if (found := _find(patches, config)) and set(wanted) <= set(found.targets):
        return found
    check_compilers(config)
    with locked() as cache:
        patched = tree.ensure(cache, patches, config.checkout)
        found = _find(patches, config)  # another process may have built it meanwhile
        if found is None or not set(wanted) <= set(found.targets):
            wanted = sorted({*wanted, *(found.targets if found else ())})
            # One place for all states of a pin or checkout: the next build compiles only what differs.
            origin = config.source or f"{patches.pin.sha256} {patches.pin.subdir}"
            work = cache / f"work-{key(str(cache), origin, config.identity())}"  # cmake knows absolute paths
            work.mkdir(exist_ok=True)
            used(work)
            tree.mirror(patched, work / "source")
            is_first = found is None and FIRST in wanted and len(wanted) > 1
            for stage in [[FIRST], wanted] if is_first else [wanted]:
                compile_targets(work / "source", work, config, stage, jobs)
                _publish(work / "build/bin", cache / _build_name(patched.name, config), stage)
            keep_recent(cache)
    found = _find(patches, config)
    if found is None:
        raise SherryError(f"{config.source or patches.pin} changed while it was being built: run the build again")
    return found


def find_build(*, patches: PatchSet | None = None) -> Build:
    """The build that `sherry-gguf build` made last, if it is up to date; nothing is built.

    Up to date: of the present patch and the present state of the checkout, if it is of one, and for this
    processor. Before the command was ever used it is the default build. Raises SherryError where there is none.
    """
    patches = patches or PatchSet.load()
    config = Config.load(cache_dir() / LAST)
    with _way_back(config):
        found = _find(patches, config)
    if found is None:
        raise SherryError(f"no up-to-date build of llama.cpp in {cache_dir()}", Way.BUILD(config.flags()))
    return found


def remember(source: Path | None, defines: Sequence[str]) -> None:
    """Make the build with these arguments the one that find_build() finds."""
    config, file = Config.of(source, tuple(defines)), cache_dir() / LAST
    if not file.is_file() or Config.load(file) != config:
        with locked():
            config.save(file)


def install(archive: Path, sha256: str | None = None) -> Build:
    """Take a build from an archive (prebuilt.pack), and make it the one that find_build() finds. Nothing is compiled.

    sha256: what the archive should have, default what ``archive.sha256`` says. Raises SherryError as unpack() does.
    """
    patches = PatchSet.load()
    with locked() as cache:
        found = prebuilt.unpack(cache, archive, sha256, tree.tree_name(patches, None))
        Config(prebuilt=found).save(cache / LAST)
        keep_recent(cache)
    return find_build()


def find_source() -> Path:
    """The patched tree of what `sherry-gguf build` was asked for last, the pin's before; made if need be.

    Of a build that was made elsewhere it has what Python uses.
    """
    config = Config.load(cache_dir() / LAST)
    with _way_back(config):
        if config.prebuilt is not None and (found := _find(PatchSet.load(), config)):
            return found.source
        return tree.source(config.checkout)


@contextmanager
def _way_back(config: Config) -> Iterator[None]:
    """Where the checkout of the last build is gone or no longer fits, say how to do without it."""
    try:
        yield
    except SherryError as error:
        if config.source is None:
            raise
        raise SherryError(f"{error.saw}; the last build was of this checkout", *error.ways, Way.BUILD_PIN) from None


def _build_name(tree_name: str, config: Config) -> str:
    return f"build-{key(tree_name, config.identity())}"


def _find(patches: PatchSet, config: Config) -> Build | None:
    """The build of the present state of source and patch, if there is one."""
    cache = cache_dir()
    name = tree.tree_name(patches, config.checkout)
    path, source = cache / _build_name(name, config), cache / name
    if config.prebuilt is not None:
        path = prebuilt.directory(cache, config.prebuilt)
        source = path / "source"
    try:
        stamp = json.loads((path / STAMP).read_text(encoding="utf-8"))
        targets = tuple(stamp["targets"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no complete build
        return None
    if not source.is_dir() or stamp.get("tree", name) != name:
        return None
    return Build(used(path) / "bin", used(source), targets)


def _publish(built: Path, to: Path, targets: Sequence[str]) -> None:
    """Copy the targets' programs and all shared libraries to a build's directory, its stamp last.

    The directory of the work changes with the next build; this one may be in use.
    """
    (to / "bin").mkdir(parents=True, exist_ok=True)
    libraries = [path.name for path in built.glob("lib*") if ".so" in path.name or path.suffix == ".dylib"]
    for name in [*libraries, *(target for target in targets if (built / target).is_file())]:
        new, old = built / name, to / "bin" / name
        if old.exists() and filecmp.cmp(new, old, shallow=False):
            continue
        partial = old.with_name(PARTIAL + name)
        shutil.copy2(new, partial, follow_symlinks=False)
        os.replace(partial, old)
    stamp = to / (PARTIAL + STAMP)
    stamp.write_text(json.dumps({"targets": sorted(targets)}) + "\n", encoding="utf-8")
    stamp.replace(to / STAMP)
