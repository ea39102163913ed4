"""Calls that Windows does not have are made in one place, or behind a question whether they are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sherry_gguf"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_ggml_patch" not in path.parts)

GUARDED = PACKAGE / "files/system.py"
# An archive that has links is of a system that has them.
ALLOWED = {"llama_cpp/prebuilt.py": {"symlink_to"}}

_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
_OS = {
    "fork", "forkpty", "symlink", "chown", "fchown", "lchown", "mkfifo", "mknod", "getuid", "geteuid", "getgid",
    "getegid", "setsid", "getpgid", "killpg", "nice", "posix_fallocate", "posix_fadvise", "sched_getaffinity",
    "statvfs", "uname", "wait", "waitpid", "getloadavg", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK",
}  # fmt: skip
_SIGNALS = ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGCONT")
_METHODS = ("symlink_to", "hardlink_to", "lchmod")  # of a path
_ARGUMENTS = ("preexec_fn", "pass_fds", "start_new_session")


def posix_only(text: str) -> Iterator[tuple[int, str]]:
    """The line and name of each such call that is not behind hasattr() or a try for its import."""
    tree = ast.parse(text)
    asked = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
        if isinstance(node.args[1], ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name in _MODULES)
        elif isinstance(node, ast.Attribute) and node.attr not in asked:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            of_owner = {"os": _OS, "signal": _SIGNALS}.get(owner, ())
            if node.attr in of_owner or node.attr in _METHODS:
                yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg in _ARGUMENTS:
            yield node.value.lineno, node.arg


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_calls_of_posix_are_in_guarded_places(path):
    if path != GUARDED:
        allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())
        assert [found for found in posix_only(path.read_text(encoding="utf-8")) if found[1] not in allowed] == []


def test_what_is_allowed_is_used():
    for name, allowed in ALLOWED.items():
        assert allowed == {found for _, found in posix_only((PACKAGE / name).read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl", "from resource import getrusage", "os.fork()", "os.symlink(a, b)", "signal.SIGKILL",
        "path.symlink_to(other)", "subprocess.run(x, start_new_session=True)", "os.open(p, os.O_CLOEXEC)",
    ],
)  # fmt: skip
def test_such_calls_are_found(line):
    assert len(list(posix_only(line))) == 1


def test_the_guarded_place_does_without_what_windows_lacks(tmp_path):
    """The module as it is where there is no fcntl, no chown, and no link may be made."""
    text = GUARDED.read_text(encoding="utf-8")
    text = re.sub(r"import fcntl$", "raise ImportError", text, flags=re.MULTILINE)
    text = text.replace("name.symlink_to(", "raise OSError  # (").replace('hasattr(os, "chown")', "False")
    system = {}
    exec(compile(text, "system.py", "exec"), system)
    assert not system["HAS_LOCKS"]
    file = tmp_path / "a"
    file.write_text("x")
    with file.open() as opened, pytest.raises(OSError, match="not supported"):
        system["lock"](opened.fileno())
    system["set_owner"](file, file.stat())
    system["name_also"](file, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x"
    assert not (tmp_path / "b").is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/c").write_text("y")
    system["name_also"](tmp_path / "folder", tmp_path / "again")
    assert (tmp_path / "again/c").read_text() == "y"


def test_the_workflow_runs_what_the_gate_runs():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands.keys() == {"linux", "macos", "windows"}
    assert commands["linux"] == commands["macos"] == [".ci/run"]
    # what make does, which is not there
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace('"', "'")
    for command, ends in zip(
        commands["windows"], ("--editable '.[test]'", "-m 'not runtime and not slow'"), strict=True
    ):
        assert command.replace('"', "'").endswith(ends)
        assert ends in makefile
    for name, job in jobs.items():
        assert "untried" in job["name"] or name == "linux"
