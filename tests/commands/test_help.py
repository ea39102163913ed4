"""What `--help` shows: usage in a line, examples that are taken, every flag in one of four groups."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import fields

import pytest

from sherry_gguf.cli import main
from sherry_gguf.commands import COMMANDS
from sherry_gguf.commands.help_page import command_parser

SCREEN = (45, 100)  # lines, columns
GROUPS = ("Basic:", "Output:", "Checks:", "Expert:")


def page_of(name, capsys, monkeypatch, flag="--help"):
    monkeypatch.setenv("COLUMNS", str(SCREEN[1]))
    with pytest.raises(SystemExit) as status:
        main([name, flag])
    assert status.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page(name, capsys, monkeypatch):
    lines = page_of(name, capsys, monkeypatch).splitlines()
    assert lines[0].startswith(f"usage: sherry-gguf {name} ")
    assert lines[1] == ""
    assert [line for line in lines if re.match(r"\w+:$", line) and line != "Examples:"] == [
        title for title in GROUPS if title in lines
    ]
    assert max(map(len, lines)) <= SCREEN[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_taken(name):
    parser, module = command_parser(name)
    assert len(module.EXAMPLES) == 3
    for example in module.EXAMPLES:
        line = re.search(r"sherry-gguf [^>)]*", example)[0]
        _, command, *arguments = shlex.split(line)
        assert command == name
        parser.parse_args(arguments)


def test_trainings_page_is_one_screen(capsys, monkeypatch):
    from sherry_gguf.train.options import Arguments, Options

    page = page_of("train", capsys, monkeypatch)
    assert page.count("\n") <= SCREEN[0]
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')} " in page
    everything = page_of("train", capsys, monkeypatch, "--help-all")
    for field in fields(Arguments):
        if field.init:
            assert f"--{field.name.replace('_', '-')} " in everything


def test_flags_shown_for_training_are_read_as_the_library_reads_them():
    parser, _ = command_parser("train")
    paths = ["--model", "a", "--data", "b", "--out", "c"]
    args = parser.parse_args([*paths, "--ctx_size", "64", "--max-steps", "3", "--bf16", "false"])
    assert (args.ctx_size, args.max_steps, args.bf16) == (64, 3, False)


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """The script for bash, in a file."""
    parser, module = command_parser("completion")
    path = tmp_path_factory.mktemp("completion") / "sherry-gguf"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert module.execute(parser.parse_args(["bash"])) == 0
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["conv"], "convert"),
        (["convert", "--outf"], "--outfile"),
        (["convert", "--granularity", "per_c"], "per_channel"),
        (["train", "--arenas-m"], "--arenas-max"),
        (["train", "--gradient-acc"], "--gradient-accumulation-steps"),
        (["inspect", "rea"], "readable.gguf"),
    ],
)
def test_bash_completes(typed, offered, completion, tmp_path):
    (tmp_path / "readable.gguf").touch()
    words = " ".join(["sherry-gguf", *typed])
    script = f"""
        source {completion}
        COMP_WORDS=({words}); COMP_CWORD={len(typed)}; COMP_LINE='{words}'
        $(complete -p sherry-gguf | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert offered in done.stdout.split(), done.stderr


def test_an_unknown_shell_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as status:
        main(["completion", "abacus"])
    assert status.value.code == 2
    assert "argument SHELL: invalid choice: 'abacus'" in capsys.readouterr().err
