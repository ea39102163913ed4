"""Usage of the command, which needs neither checkpoint nor runtime."""

from __future__ import annotations

import pytest

from sherry_gguf.cli import run_command


@pytest.mark.parametrize("arguments", [["--ctx-size", "0"], ["--chunks", "-1"], ["--threads", "x"]])
def test_bad_numbers_are_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run_command("parity", ["model", "model.gguf", "--text", "text", *arguments])
    assert error.value.code == 2
    assert "is no positive integer" in capsys.readouterr().err


def test_a_chunk_that_predicts_nothing_is_refused(capsys):
    assert run_command("parity", ["model", "model.gguf", "--text", "text", "--ctx-size", "2"]) == 1
    assert "take 3 at least" in capsys.readouterr().err
