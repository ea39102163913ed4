"""The house rules: rooms import only those above them, flags are named by commands only, and one word is one idea."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sherry_gguf"
# from the top floor down; a room may import those before it
ROOMS = (
    "interrupt", "errors", "threads", "formats", "weights", "checkpoint", "calibrate", "files", "llama_cpp", "convert",
    "parity", "train", "adapter", "page", "api", "commands", "cli",
)  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("_ggml_patch",))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sherry_gguf":
            rest = (node.module or "").split(".")[1:]
            names = [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sherry_gguf.")]
        yield from (name for name in names if name in ROOMS)


def test_the_root_holds_the_doors_and_what_all_rooms_need():
    doors = {"__init__.py", "__main__.py", "api.py", "cli.py"}
    assert {path.name for path in PACKAGE.glob("*.py")} == {*doors, "errors.py", "interrupt.py", "threads.py"}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_those_above_it(path):
    room = room_of(path)
    if room == "__init__":
        assert set(imported_rooms(path)) <= {"interrupt", "errors", "formats", "api"}
    elif path.name != "__main__.py":  # `python -m` of a room starts the command line
        allowed = ROOMS[: ROOMS.index(room) + 1]
        assert [name for name in imported_rooms(path) if name not in allowed] == []


def words_of(call: ast.Call) -> str:
    return " ".join(
        node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_flags_are_named_by_commands_only(path):
    if room_of(path) in ("commands", "cli"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id.endswith(("Error", "Scales"))
        ):
            assert not re.search(r"(?<!xcode-select )--\w|`sherry-gguf", words_of(node)), f"{path}:{node.lineno}"


def names_in(path: Path) -> Iterator[tuple[str, int]]:
    """Every name that a module gives to a module, function, class, parameter or variable."""
    yield path.stem, 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_word_has_one_meaning(path):
    for name, line in names_in(path):
        if path == PACKAGE / "commands" / "report.py" and line == 0:
            continue  # the command's own name
        assert name.strip("_").lower() not in ("kind", "kinds", "report", "reports", "run"), f"{path}:{line} {name}"
        if "span" in name.split("_"):
            assert room_of(path) == "files", f"{path}:{line} {name}"
