"""Usage of the command, which needs neither checkpoint nor runtime."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sherry_gguf.checkpoint import Source
from sherry_gguf.cli import run_command
from sherry_gguf.parity import compare
from sherry_gguf.weights.granularity import Granularity

ARGUMENTS = ["model", "model.gguf", "--text", "text"]


@pytest.fixture
def asked_for(monkeypatch, good_report):
    """Runs nothing: the command gets a good report, and the arguments are kept."""
    calls = []

    def parity(source, gguf, text, limits, **options):
        calls.append(source)
        return replace(good_report, model=str(source.model), gguf=str(gguf), text=str(text))

    monkeypatch.setattr(compare, "parity", parity)
    return calls


@pytest.mark.parametrize("arguments", [["--ctx-size", "0"], ["--chunks", "-1"], ["--threads", "x"]])
def test_bad_numbers_are_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run_command("parity", [*ARGUMENTS, *arguments])
    assert error.value.code == 2
    assert "is no positive integer" in capsys.readouterr().err


def test_a_chunk_that_predicts_nothing_is_refused(capsys):
    assert run_command("parity", [*ARGUMENTS, "--ctx-size", "2"]) == 1
    assert "3 are the least; take another --ctx-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size", "0"], "positive group size, got 0"),
        (["--granularity", "per_channel", "--group-size", "64"], "--group-size belongs to per_group"),
        (["--sherry-layers", "("], "no regular expression"),
    ],
)
def test_the_source_is_read_as_in_convert(arguments, message, asked_for, capsys):
    assert run_command("parity", [*ARGUMENTS, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not asked_for


def test_flags_of_the_source_arrive(asked_for):
    flags = ["--config", "dir", "--group-size", "64", "--sherry-layers", "proj", "--allow-lossy"]
    assert run_command("parity", [*ARGUMENTS, *flags]) == 0
    assert asked_for == [Source(Path("model"), Path("dir"), Granularity("per_group", 64), "proj", allow_lossy=True)]


def test_names_are_no_markup(asked_for, capsys):
    assert run_command("parity", ["x[/y]", "a[bold]/o[red].gguf", "--text", ":heart:"]) == 0
    assert "a[bold]/o[red].gguf in llama.cpp against x[/y] in PyTorch (fp32), on :heart:" in capsys.readouterr().out


def test_both_ways_to_start_it_have_one_name():
    for start in (["sherry_gguf", "parity"], ["sherry_gguf.parity"]):
        command = [sys.executable, "-m", *start, *ARGUMENTS, "--ctx-size", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.stderr.startswith("sherry-gguf parity: error: a context of 2 tokens")
