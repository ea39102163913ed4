"""What a file and a model are called, where upstream's converter has no rule that fits."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sherry_gguf.files import system


def directory_for(model: Path) -> Path:
    """The folder of a file that nobody named: the model's, but never one of the Hub's cache."""
    if hub_name(model):
        return Path.cwd()
    return model if model.is_dir() else model.parent


def hub_name(model: Path) -> str | None:
    """``.../models--org--name/snapshots/hash`` -> ``name``; None for a folder outside the Hub's cache."""
    repository = Path(os.path.abspath(model)).parents[1:2]
    if repository and repository[0].name.startswith("models--") and (repository[0] / "snapshots").is_dir():
        return repository[0].name.rpartition("--")[2]
    return None


@contextmanager
def under_its_name(directory: Path) -> Iterator[Path]:
    """The directory; for a snapshot of the Hub, whose folder has the name of a commit, under the model's name.

    Upstream's converter takes the parts of a model's name from its folder's.
    """
    if (name := hub_name(directory)) is None:
        yield Path(os.path.abspath(directory))
        return
    with tempfile.TemporaryDirectory(prefix="sherry-convert-") as folder:
        link = Path(folder, name)
        system.name_also(directory, link)
        yield link


def template(outfile: Path) -> Path:
    """The path as upstream's converter fills it in: braces count around its names of the type, and nowhere else."""
    doubled = outfile.name.replace("{", "{{").replace("}", "}}")
    return outfile.with_name(re.sub(r"\{\{(|ftype|FTYPE|outtype|OUTTYPE)\}\}", r"{\1}", doubled))
