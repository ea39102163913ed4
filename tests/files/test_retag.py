"""Ids change and nothing else does; what does not fit is refused; no file is harmed."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import pytest
from refusals import refused

from sherry_gguf.commands.retag import WAYS
from sherry_gguf.files.header import read_header
from sherry_gguf.files.identify import find_types
from sherry_gguf.files.retag import retag


def mixed(parts, type_id, file_type=None, **options):
    """Two STQ1_0 tensors between others."""
    entries = [parts.entry("general.architecture", 8, "llama")]
    if file_type is not None:
        entries.append(parts.entry("general.file_type", 4, file_type))
    tensors = [
        ("token_embd.weight", (64, 8), 0, parts.f32(8, 64)),
        ("blk.0.attn_q.weight", (512, 8), type_id, parts.stq1_0_blocks(8, 512)),
        ("blk.0.attn_norm.weight", (7,), 0, parts.f32(1, 7)),
        ("blk.0.ffn_down.weight", (256, 16), type_id, parts.stq1_0_blocks(16, 256, seed=1)),
    ]
    return parts.gguf_bytes(tensors, entries, **options)


def native(parts, type_id, file_type):
    entries = [parts.entry("general.file_type", 4, file_type)]
    return parts.gguf_bytes([("a.weight", (384, 8), type_id, parts.sherry_blocks(8, 384))], entries)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "x.gguf"


@pytest.mark.parametrize("alignment", [32, 64, 128])
@pytest.mark.parametrize("old", [42, 43, 253])
@pytest.mark.parametrize(("to", "new"), [("42", 42), ("43", 43)])
def test_stq1_0(file, parts, old, to, new, alignment):
    """The result is byte for byte the file that would have been built with the new id."""
    file.write_bytes(mixed(parts, old, alignment=alignment))
    done = retag(file, to)
    assert file.read_bytes() == mixed(parts, old, alignment=alignment)
    if old == new:
        assert done.outfile is None
        assert str(done) == f"nothing to do: all 2 STQ1_0 tensors have id {new}"
        assert list(file.parent.iterdir()) == [file]
        return
    assert done.outfile == file.with_name(f"x-id{new}.gguf")
    assert done.changed == 2
    assert done.outfile.read_bytes() == mixed(parts, new, alignment=alignment)


@pytest.mark.parametrize("old", [43, 100, 253, 777])
def test_native(file, parts, old):
    file.write_bytes(native(parts, old, old))
    retag(file, "512-native", in_place=True)
    assert file.read_bytes() == native(parts, 512, 512 if old != 43 else 43)


def test_native_of_32(file, parts):
    def content(type_id):
        entries = [parts.entry("general.file_type", 4, type_id)]
        return parts.gguf_bytes([("a.weight", (96, 8), type_id, parts.sherry_g32_blocks(8, 96))], entries)

    file.write_bytes(content(777))
    retag(file, "520-native", in_place=True)
    assert file.read_bytes() == content(520)


@pytest.mark.parametrize(
    ("old", "to", "was", "becomes"),
    [(42, "43", 41, 42), (43, "42", 42, 41), (42, "43", 513, 513), (42, "43", 1, 1), (253, "43", 253, 42),
     (43, "42", 41, 41)],
)  # fmt: skip
def test_file_type_follows_where_it_was_the_ids(file, parts, old, to, was, becomes):
    file.write_bytes(mixed(parts, old, was))
    retag(file, to, in_place=True)
    assert file.read_bytes() == mixed(parts, int(to), becomes)


def test_there_and_back(file, parts):
    content = mixed(parts, 42, 41)
    file.write_bytes(content)
    for to in ("43", "42"):
        retag(file, to, in_place=True)
        assert retag(file, to, in_place=True).outfile is None
    assert file.read_bytes() == content


def test_a_file_with_both_ids(file, parts):
    """Each id is decided by itself, and those that have the new one already stay."""
    tensors = [("a", (512, 8), 42, parts.stq1_0_blocks(8, 512)), ("b", (512, 8), 43, parts.stq1_0_blocks(8, 512))]
    file.write_bytes(parts.gguf_bytes(tensors))
    done = retag(file, "43", in_place=True)
    assert (done.changed, done.unchanged) == (1, 1)
    assert [t.type_id for t in read_header(file).tensors] == [43, 43]


def file_that_is_refused(parts, case):
    q2_0, stq1_0 = parts.q2_0_blocks(8, 512), parts.stq1_0_blocks(8, 512)
    tensors = {
        "Q2_0 under 42": [("a", (512, 8), 42, q2_0)],
        "Q2_0 under 43": [("a", (512, 8), 43, q2_0)],
        "STQ1_0 as native": [("a", (512, 8), 43, stq1_0)],
        "STQ1_0 under 512": [("a", (512, 8), 512, stq1_0)],
        "native as STQ1_0": [("a", (512, 8), 512, parts.sherry_blocks(8, 512))],
        "contradicting": [("a", (512, 8), 42, stq1_0), ("b", (512, 8), 42, q2_0)],
        "Q2_0 in the way": [("a", (512, 8), 43, stq1_0), ("b", (512, 8), 42, q2_0)],
        "neither": [("a", (64, 8), 0, parts.f32(8, 64))],
        "undecided": [("a", (256,), 42, parts.stq1_0_blocks(1, 256))],
        "would be undecided": [("a", (256,), 43, parts.stq1_0_blocks(1, 256))],
    }[case]
    return parts.gguf_bytes(tensors, alignment=128 if "undecided" in case else 32)


REFUSED = {
    "Q2_0 under 42": ("43", "no tensor is STQ1_0.*a has id 42, 1,152 bytes.*STQ1_0 needs 672, Q2_0 needs 1,152"),
    "Q2_0 under 43": ("42", "a: .*id 43, 1,152 bytes with padding: Q2_0 needs 1,152, STQ1_0 needs 672"),
    "STQ1_0 as native": ("512-native", "a has id 43, 672 bytes with padding: SHERRY needs 704, STQ1_0 needs 672"),
    "STQ1_0 under 512": ("43", "a: .*id 512, 672 bytes with padding: .*STQ1_0 needs 672, SHERRY needs 704"),
    "native as STQ1_0": ("43", "a has id 512, 704 bytes with padding: STQ1_0 needs 672, SHERRY needs 704"),
    "contradicting": ("43", "a: is STQ1_0, and others of that id are not"),
    "Q2_0 in the way": ("42", "a: STQ1_0 would not be found again: is STQ1_0, and others of that id are not"),
    "neither": ("43", "no tensor is STQ1_0, so none gets id 43; `sherry-gguf inspect .*x.gguf` shows"),
    "undecided": ("43", "a: nothing tells Q2_0 from STQ1_0"),
    "would be undecided": ("42", "a: STQ1_0 would not be found again: nothing tells Q2_0 from STQ1_0"),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(file, parts, case, in_place):
    to, message = REFUSED[case]
    file.write_bytes(file_that_is_refused(parts, case))
    with refused(message, WAYS):
        retag(file, to, in_place=in_place)
    assert file.read_bytes() == file_that_is_refused(parts, case)
    assert list(file.parent.iterdir()) == [file]


def test_an_existing_outfile(file, parts, tmp_path):
    file.write_bytes(mixed(parts, 42))
    other = tmp_path / "other.gguf"
    other.write_text("mine")
    with refused(r"other\.gguf exists; .*--force"):
        retag(file, "43", other)
    assert other.read_text() == "mine"
    retag(file, "43", other, force=True)
    assert other.read_bytes() == mixed(parts, 43)


def test_in_place_keeps_permissions_and_links(file, parts, tmp_path):
    file.write_bytes(mixed(parts, 42))
    file.chmod(0o640)
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    assert retag(link, "43", in_place=True).outfile == file
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.read_bytes() == mixed(parts, 43)


# Stops the process where its argument says: before the ids are written, or before the rename.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from sherry_gguf.files import outfile, retag

def stop(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

{}
retag.retag(Path(sys.argv[1]), "43", in_place=True)
"""


@pytest.mark.parametrize("where", ["retag._write = stop", "outfile.os.replace = stop"])
def test_killed_in_place(file, parts, where):
    """A temporary file may be left, the file itself is what it was, and the next run succeeds."""
    file.write_bytes(mixed(parts, 42))
    done = subprocess.run([sys.executable, "-c", INTERRUPTED.format(where), file], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == mixed(parts, 42)
    assert len(list(file.parent.iterdir())) == 2
    retag(file, "43", in_place=True)
    assert file.read_bytes() == mixed(parts, 43)


def test_a_full_disk(file, parts):
    """Here: a process that may write no more than half the file."""
    content = mixed(parts, 42)
    file.write_bytes(content)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, resource.RLIM_INFINITY))

    run = [sys.executable, "-m", "sherry_gguf", "retag", file, "--to", "43", "--in-place"]
    done = subprocess.run(run, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]


def test_command(file, parts, capsys):
    from sherry_gguf.cli import main

    file.write_bytes(mixed(parts, 42))
    new = file.with_name("x-id43.gguf")
    assert main(["retag", str(file), "--to", "43"]) == 0
    assert capsys.readouterr().out == f"wrote {new}: 2 STQ1_0 tensors have id 43 now\n"
    assert main(["retag", str(new), "--to", "43"]) == 0
    assert capsys.readouterr().out == "nothing to do: all 2 STQ1_0 tensors have id 43\n"
    with pytest.raises(SystemExit, match="2"):
        main(["retag", str(file), "--to", "43", "--in-place", "--outfile", "y.gguf"])
    assert [typed.type_name for typed in find_types(read_header(new))] == ["F32", "STQ1_0", "F32", "STQ1_0"]
