"""The linters are part of the tests."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=lambda c: "-".join(c)
)
def test_clean(repository, command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
