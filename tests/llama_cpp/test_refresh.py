"""ggml-patch/refresh.sh: the patch set as commits, and back; whatever the user's git is set to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.llama_cpp.cache import cache_dir
from sherry_gguf.llama_cpp.upstream import PatchSet

HOSTILE = """\
[user]
    useConfigOnly = true
[core]
    autocrlf = true
    safecrlf = true
    hooksPath = {home}/hooks
    attributesFile = {home}/attributes
    excludesFile = {home}/excludes
[commit]
    gpgSign = true
[tag]
    gpgSign = true
[gpg]
    program = false
[init]
    templateDir = {home}/template
[diff]
    noprefix = true
    external = false
    context = 9
    interHunkContext = 20
    algorithm = histogram
    renames = copies
[color]
    ui = always
[log]
    showSignature = true
[format]
    pretty = fuller
[apply]
    whitespace = error
[status]
    showUntrackedFiles = no
"""


class Refresh:
    """A patch set's refresh.sh, the tree it makes, and a user with a home directory."""

    def __init__(self, root: Path, home: Path, tree: Path) -> None:
        self.root, self.tree = root, tree
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "XDG_CONFIG"))}
        own = {"HOME": str(home), "PYTHON": sys.executable, "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true"}
        packages = {"PYTHONPATH": str(Path(__file__).parents[2]), "SHERRY_GGUF_CACHE": str(cache_dir())}
        self.environment = kept | own | packages

    def start(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        script = ["sh", str(self.root / "refresh.sh"), command, str(self.tree), *options]
        return subprocess.run(script, env=self.environment, capture_output=True, text=True)

    def __call__(self, command: str, *options: str) -> str:
        done = self.start(command, *options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def error(self, command: str, *options: str) -> str:
        """The last line of its failure."""
        done = self.start(command, *options)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("refresh.sh: ")
        return done.stderr.splitlines()[-1].removeprefix("refresh.sh: ")

    def git(self, *arguments: str) -> None:
        """What the user does in the tree, with the settings of the user's home."""
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=self.tree, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def state(self) -> dict[str, bytes]:
        """The contents of the patch set."""
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture(params=["empty", "hostile"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    if request.param == "hostile":
        (path / ".gitconfig").write_text(HOSTILE.format(home=path))
        (path / "attributes").write_text("* text eol=crlf\n")
        (path / "excludes").write_text("*\n")
        for hook in ("hooks/pre-commit", "template/hooks/post-checkout"):
            (path / hook).parent.mkdir(parents=True)
            (path / hook).write_text("#!/bin/sh\nexit 1\n")
            (path / hook).chmod(0o755)
    return path


@pytest.fixture
def refresh(fetched: PatchSet, home: Path, tmp_path: Path, repository: Path) -> Refresh:
    """That of the tiny patch set."""
    shutil.copy(repository / "ggml-patch/refresh.sh", fetched.root)
    return Refresh(fetched.root, home, tmp_path / "a tree")


@pytest.fixture
def repin(tiny: ModuleType, refresh: Refresh, tmp_path: Path) -> Callable[[str, str], Path]:
    """Pin a tiny llama.cpp 2.0, in whose src/tiny.c a text is another; return its sdist."""

    def pin(old: str, new: str) -> Path:
        assert old in tiny.TREE["src/tiny.c"]
        tree = tiny.TREE | {"src/tiny.c": tiny.TREE["src/tiny.c"].replace(old, new)}
        members = {f"tiny-2.0/vendor/llama.cpp/{name}": text for name, text in tree.items()}
        sdist = tiny.write_sdist(tmp_path / "tiny_cpp-2.0.tar.gz", members)
        lines = ["sdist: tiny-cpp", "version: 2.0", f"sha256: {sha256(sdist.read_bytes()).hexdigest()}"]
        (refresh.root / "UPSTREAM").rename(refresh.root / "UPSTREAM.old")
        (refresh.root / "UPSTREAM").write_text("\n".join([*lines, "subdir: vendor/llama.cpp", ""]))
        return sdist

    return pin


@pytest.mark.runtime
def test_the_shipped_patches_come_back_as_they_are(home: Path, tmp_path: Path, repository: Path) -> None:
    root = tmp_path / "ggml-patch"
    shutil.copytree(repository / "ggml-patch", root)
    refresh = Refresh(root, home, tmp_path / "tree")
    before = refresh.state()
    refresh("tree")
    assert refresh("write") == ""
    assert refresh.state() == before

    # a hunk and a kernel in one commit, a kernel in one of its own, a file that comes and one that goes
    header, kernel = refresh.tree / "ggml/include/ggml.h", refresh.tree / "ggml/src/ggml-cpu/sherry/tile.c"
    header.write_text(header.read_text().replace("GGML_TYPE_SHERRY    = 512,", "GGML_TYPE_SHERRY    = 510,"))
    kernel.write_text(kernel.read_text() + "// one\n")
    refresh.git("commit", "-q", "-a", "--fixup", ":/0001-ggml-type.patch")
    refresh.git("rebase", "-q", "-i", "--autosquash", "pin")
    kernel.write_text(kernel.read_text() + "// two\n")
    (kernel.parent / "new.c").write_text("int new_one;\n")
    (kernel.parent / "tile-x86.h").unlink()
    refresh.git("add", "-A")
    refresh.git("commit", "-q", "-m", "faster")

    sherry = "files/ggml/src/ggml-cpu/sherry"
    written = [f"{sherry}/new.c", f"{sherry}/tile.c", "patches/0001-ggml-type.patch", f"{sherry}/tile-x86.h is gone"]
    assert refresh("write").splitlines() == written
    after, patch = refresh.state(), "patches/0001-ggml-type.patch"
    assert without_hashes(after.pop(patch)) == without_hashes(before.pop(patch)).replace(
        b"SHERRY    = 512", b"SHERRY    = 510"
    )
    before[f"{sherry}/tile.c"] += b"// one\n// two\n"
    before[f"{sherry}/new.c"] = b"int new_one;\n"
    del before[f"{sherry}/tile-x86.h"]
    assert after == before


def without_hashes(patch: bytes) -> bytes:
    return re.sub(rb"^index .*$", b"", patch, flags=re.MULTILINE)


def test_a_pin_that_moves_a_hunk(refresh: Refresh, repin: Callable[[str, str], Path]) -> None:
    refresh("tree")
    sdist = repin("/* tiny */", "/* tiny\n * 2.0\n */")
    assert "tiny-cpp 1.0" in refresh.error("write")
    assert "2 commits on tiny-cpp 2.0 " in refresh("move", "--sdist", str(sdist))
    assert refresh("write") == "patches/0001-forty.patch\n"
    text = (refresh.root / "patches/0001-forty.patch").read_text()
    assert text.startswith("Description: count from forty\n Two lines of it.\nAuthor: the tests\nForwarded: no\n\ndiff")
    assert "\n@@ -4,7 +4,7 @@\n" in text
    assert "has the pin of UPSTREAM already" in refresh.error("move", "--sdist", str(sdist))

    refresh.tree = refresh.tree.with_name("another")  # the series is one of 2.0 now
    refresh("tree")
    assert refresh("write") == ""


def test_a_pin_that_a_hunk_does_not_fit(refresh: Refresh, repin: Callable[[str, str], Path]) -> None:
    refresh("tree")
    sdist = repin("1 + other()", "2 + other()")
    assert "resolve the conflicts" in refresh.error("move", "--sdist", str(sdist))
    assert "a rebase is going on" in refresh.error("write")
    file = refresh.tree / "src/tiny.c"
    file.write_text(
        re.sub(r"<<<<<<<.*>>>>>>> [^\n]*\n", "    return 80 + other();\n", file.read_text(), flags=re.DOTALL)
    )
    refresh.git("add", "src/tiny.c")
    refresh.git("rebase", "--continue")
    refresh("write")
    text = (refresh.root / "patches/0001-forty.patch").read_text()
    assert "\n-    return 2 + other();\n+    return 80 + other();\n" in text

    # the other way round: a series for 2.0, and UPSTREAM at 1.0
    (refresh.root / "UPSTREAM").write_text((refresh.root / "UPSTREAM.old").read_text())
    refresh.tree = refresh.tree.with_name("another")
    assert "0001-forty.patch does not fit tiny-cpp 1.0 " in refresh.error("tree")
    assert not refresh.tree.exists()


def test_a_rebase_that_was_given_up(refresh: Refresh, repin: Callable[[str, str], Path]) -> None:
    refresh("tree")
    refresh.error("move", "--sdist", str(repin("1 + other()", "2 + other()")))
    refresh.git("rebase", "--abort")
    assert "git rebase --onto pin pin~1" in refresh.error("write")


def test_a_new_patch(refresh: Refresh) -> None:
    refresh("tree")
    (refresh.tree / "src/other.c").write_text("int other(void) {\n    return 7;\n}\n")
    assert "not committed" in refresh.error("write")
    refresh.git("commit", "-q", "-a", "-m", "0002-seven.patch")
    assert "leave out changes of src/other.c" in refresh.error("write")
    with (refresh.root / "series").open("a") as series:
        series.write("0002-seven.patch\n")
    assert "patches/0002-seven.patch is missing" in refresh.error("write")
    (refresh.root / "patches/0002-seven.patch").write_text("Description: seven\n")
    assert "patches/0002-seven.patch\n" in refresh("write")
    text = (refresh.root / "patches/0002-seven.patch").read_text()
    assert text.startswith("Description: seven\n\ndiff --git a/src/other.c b/src/other.c\nindex ")
    assert len(PatchSet.load(refresh.root).series) == 2


def test_what_is_no_tree(refresh: Refresh, tmp_path: Path, sdist: Path) -> None:
    before = refresh.state()
    refresh.tree.mkdir()
    assert refresh.error("tree") == f"{refresh.tree} is there already"
    assert refresh.error("write") == f"{refresh.tree} was not made by `refresh.sh tree`"
    refresh.tree.rmdir()
    wrong = refresh.error("tree", "--sdist", str(refresh.root / "series"))
    assert wrong.startswith("series has sha256 ")
    assert not refresh.tree.exists()
    for arguments in (["tree", "--sdist"], ["write", "--sdist", str(sdist)], ["rebase"]):
        done = refresh.start(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "refresh.sh write DIR" in done.stderr
    assert refresh.state() == before
