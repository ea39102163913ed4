"""What a conversion wrote, as a table: how many bits the weights of each class take."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sherry_gguf.convert.verify import Verdict

# GGUF tensor names, first match wins.
_CLASSES = (
    ("token embedding", r"^token_embd\.weight$"),
    ("output", r"^output\.weight$"),
    ("norms", r"norm"),
    ("experts", r"_exps\."),
    ("router", r"ffn_gate_inp"),
    ("attention", r"\.attn_.*\.weight$"),
    ("feed-forward", r"\.ffn_.*\.weight$"),
    ("biases", r"\.bias$"),
    ("other", r""),
)


@dataclass(frozen=True)
class WrittenTensor:
    """name and type as in the file; shape as PyTorch has it; bytes without padding."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def tensor_class(self) -> str:
        return next(label for label, pattern in _CLASSES if re.search(pattern, self.name))


@dataclass(frozen=True)
class Conversion:
    """outfile; how the layers were read; the tensors; layer -> relative error where weights were changed.

    files    what was written, or would be: outfile, or the parts, of which it is the first
    verdict  what was verified; None without verification
    loaded   llama.cpp was seen to load the file; False where it was not asked, as it is not built
    """

    outfile: Path
    source: str
    tensors: Sequence[WrittenTensor]
    losses: dict[str, float]
    notes: Sequence[str]
    files: Sequence[Path] = ()
    verdict: Verdict | None = None
    loaded: bool = False

    def bits_per_weight(self, type_name: str | None = None) -> float:
        """The mean over all tensors, or over those of one type; nan when there are none."""
        return _bits_per_weight([t for t in self.tensors if type_name in (None, t.type_name)])


def as_json(conversion: Conversion) -> dict[str, Any]:
    """What a program wants to know of a conversion, in plain values."""
    by_type: dict[str, list[WrittenTensor]] = {}
    for tensor in conversion.tensors:
        by_type.setdefault(tensor.type_name, []).append(tensor)
    return {
        "output": str(conversion.outfile),
        "files": [str(file) for file in conversion.files],
        "source": conversion.source,
        "verdict": None if conversion.verdict is None else str(conversion.verdict),
        "loaded": conversion.loaded,
        **_sizes(conversion.tensors),
        "types": {name: _sizes(members) for name, members in sorted(by_type.items())},
        "losses": conversion.losses,
        "notes": list(conversion.notes),
    }


def _sizes(tensors: Sequence[WrittenTensor]) -> dict[str, float]:
    return {
        "tensors": len(tensors),
        "weights": sum(t.n_weights for t in tensors),
        "bytes": sum(t.n_bytes for t in tensors),
        "bits_per_weight": _bits_per_weight(tensors),
    }


def print_conversion(conversion: Conversion, console: Console) -> None:
    """``console`` must not read markup: names of files and layers may have brackets."""
    table = Table(title=conversion.source, title_justify="left")
    for heading in ("class", "type"):
        table.add_column(heading)
    for heading in ("tensors", "weights", "bpw", "bytes"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, str], list[WrittenTensor]] = {}
    for tensor in conversion.tensors:
        groups.setdefault((tensor.tensor_class, tensor.type_name), []).append(tensor)
    order = [label for label, _ in _CLASSES]
    for (label, type_name), members in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        table.add_row(label, type_name, *_figures(members))
    table.add_section()
    table.add_row("all", "", *_figures(conversion.tensors))
    console.print(table)
    if conversion.losses:
        console.print(_loss_table(conversion.losses))
    for note in conversion.notes:
        console.print(note, highlight=False)


def _bits_per_weight(tensors: Sequence[WrittenTensor]) -> float:
    weights = sum(t.n_weights for t in tensors)
    return 8 * sum(t.n_bytes for t in tensors) / weights if weights else math.nan


def _figures(tensors: Sequence[WrittenTensor]) -> tuple[str, str, str, str]:
    weights = sum(t.n_weights for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    return f"{len(tensors)}", f"{weights:,}", f"{_bits_per_weight(tensors):.4g}", f"{n_bytes:,}"


def _loss_table(losses: dict[str, float]) -> Table:
    """A row for the layers of all blocks that differ in their number only; ``as_json`` has each."""
    table = Table(title="changed by quantizing: |w_q - w| / |w|", title_justify="left")
    table.add_column("layers")
    for heading in ("number", "median", "largest"):
        table.add_column(heading, justify="right")
    table.add_column("which is")
    alike: dict[str, list[str]] = {}
    for name in losses:
        alike.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    for pattern, names in alike.items():
        worst = max(names, key=lambda name: losses[name])
        median = statistics.median(losses[name] for name in names)
        table.add_row(pattern, f"{len(names)}", f"{median:.3f}", f"{losses[worst]:.3f}", worst)
    return table
