"""What an output may replace, and what a run that is stopped leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from refusals import refused

from sherry_gguf.commands import requantize as requantize_command
from sherry_gguf.errors import SherryError
from sherry_gguf.files import outfile
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.files.requantize import requantize
from sherry_gguf.files.retag import retag
from sherry_gguf.formats.table import named

NEW = b"the new file"


def write(target, force=False):
    require_free(target, force)
    with temporary_beside(target) as temporary:
        temporary.write_bytes(NEW)
        rename_durably(temporary, target, force)


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_dangling_link(path):
    path.symlink_to("nowhere")


def make_link_to_a_device(path):
    path.symlink_to("/dev/null")


def make_link_to_itself(path):
    path.symlink_to(path.name)


NO_FILES = {
    "a FIFO": make_fifo,
    "a socket": make_socket,
    "a directory": lambda path: path.mkdir(),
    "a device": make_link_to_a_device,
    "a symbolic link to no file": make_dangling_link,
    "cannot be written, Too many levels of symbolic links": make_link_to_itself,
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_regular_file_stays(what, force, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    target = tmp_path / "x"
    NO_FILES[what](target.relative_to(tmp_path))
    before = target.lstat()
    with refused(what):
        write(target, force)
    with temporary_beside(tmp_path / "y") as temporary, refused(what):  # it came while the new file was written
        rename_durably(temporary, target, force)
    assert os.path.samestat(before, target.lstat())
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    with refused(r"link exists; .*--force"):
        write(link)
    assert file.read_text() == "old"
    write(link, force=True)
    assert link.readlink() == file
    assert file.read_bytes() == NEW
    assert sorted(tmp_path.rglob("*")) == [file.parent, file, link]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_permissions_are_kept(mode, tmp_path):
    target = tmp_path / "x"
    target.write_text("old")
    target.chmod(mode)
    write(target, force=True)
    assert target.stat().st_mode & 0o7777 == mode


def test_a_new_file_has_the_permissions_of_any(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "x")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o7777 == 0o640


def test_no_one_else_reads_what_is_being_written(tmp_path):
    with temporary_beside(tmp_path / "x") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_file_that_came_meanwhile_stays(links, tmp_path, monkeypatch):
    """The one that is first is there, and the other one is refused."""
    if not links:
        monkeypatch.setattr(outfile.os, "link", lambda *_: os.stat(tmp_path / "absent"))
    target = tmp_path / "x"
    monkeypatch.setattr(outfile, "_regular", lambda _: None)  # as if it came after the last look
    write(target)
    assert target.read_bytes() == NEW
    target.write_text("first")
    with refused(r"x exists; .*--force"):
        write(target)
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_two_runs_at_once(tmp_path):
    target, ready, said = tmp_path / "x", threading.Barrier(2, timeout=30), []

    def one():
        try:
            require_free(target, False)
            with temporary_beside(target) as temporary:
                temporary.write_bytes(NEW)
                ready.wait()
                rename_durably(temporary, target, False)
            said.append("written")
        except SherryError as error:
            said.append(error.saw)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == sorted(["written", f"{target} exists"])
    assert target.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [target]


# Stops itself while the new file is written.
STOPPED = """
import os, sys
from pathlib import Path
from sherry_gguf import cli
from sherry_gguf.commands import which
from sherry_gguf.files.outfile import temporary_beside

def execute(args):
    with temporary_beside(Path(args.name)) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), {})

which.execute = execute
sys.exit(cli.main(["which", sys.argv[1]]))
"""


def stopped_by(number, target):
    return subprocess.run([sys.executable, "-c", STOPPED.format(int(number)), target], capture_output=True, text=True)


def test_killed(tmp_path):
    """What a killed run left is removed by the next; what a living one writes, and another target's, is not."""
    target = tmp_path / "x.gguf"
    target.write_text("old")
    assert stopped_by(signal.SIGKILL, target).returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    others = [
        tmp_path / ".x.gguf.notes.part",
        tmp_path / ".y.gguf.abcd1234.part",
        tmp_path / ".x.gguf.abcd1234.partial",
    ]
    for other in others:
        other.write_text("not ours")
    with temporary_beside(target) as living:
        living.write_text("going on")
        write(target, force=True)
        assert living.read_text() == "going on"
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_terminated(number, status, tmp_path):
    target = tmp_path / "x.gguf"
    target.write_text("old")
    done = stopped_by(number, target)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("linked", ["itself", "symbolic", "hard"])
def test_an_input_is_no_output(linked, build, parts, tmp_path):
    source = build([("a.weight", (256, 4), 42, parts.stq1_0_blocks(4, 256))])
    content = source.read_bytes()
    target = source if linked == "itself" else tmp_path / "link.gguf"
    if linked == "symbolic":
        target.symlink_to(source)
    elif linked == "hard":
        target.hardlink_to(source)
    for rewritten in (
        lambda: retag(source, "43", target, force=True),
        lambda: requantize(source, named("q2_0"), target, force=True),
    ):
        with refused(r"gguf is an input, and would be replaced; .*--outfile", requantize_command.WAYS):
            rewritten()
    assert source.read_bytes() == content
