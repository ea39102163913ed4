"""An inspection as tables for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sherry_gguf.files.header import FILE_TYPE_KEY
from sherry_gguf.files.inspect import Inspection, figures
from sherry_gguf.files.statistics import Scales, Statistics
from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.table import VERSION_KEY, named

_CODES_A_LINE = 8


def print_inspection(inspection: Inspection, console: Console) -> None:
    """``console`` must not read markup: names of files and tensors may have brackets."""
    file = inspection.file
    header = file.header
    described = [str(file.part)] if file.part else []
    described += [f"GGUF {header.version}, {len(header.data):,} bytes, alignment {header.alignment}"]
    for key in ("general.architecture", "general.name", FILE_TYPE_KEY, VERSION_KEY):
        if file.value(key) is not None:
            described.append(f"{key} {file.value(key)}")
    if file.value(VERSION_KEY) is None and _has_a_version(inspection):
        described.append(f"no {VERSION_KEY}, which means 1")
    console.print(f"{file.path}: {', '.join(described)}", highlight=False)
    console.print(_types(inspection))

    ternary = {
        label: measured
        for label, tensors in inspection.by_type().items()
        if (measured := [tensor.statistics for tensor in tensors if tensor.statistics])
    }
    if ternary:
        console.print(_ternary(ternary))
    for (name, type_id), measured in ternary.items():
        for line in _codes(f"{name} (id {type_id})", measured):
            console.print(line, highlight=False)
    for oddity in inspection.oddities:
        console.print(oddity, highlight=False)
    console.print(_verdict(inspection.refusals), highlight=False)


def _has_a_version(inspection: Inspection) -> bool:
    """Whether a type of the file is one that sherry.format_version is about."""
    types = (named(name) for name, _ in inspection.by_type())
    return any(tensor_type is not None and tensor_type.format_version is not None for tensor_type in types)


def _types(inspection: Inspection) -> Table:
    table = _table("types", ("type", "id"), ("tensors", "weights", "bytes", "bpw"))
    for (name, type_id), tensors in inspection.by_type().items():
        table.add_row(name, str(type_id), *_figures(figures(tensors)))
    table.add_section()
    everything = figures(inspection.tensors)
    table.add_row("all", "", *_figures(everything))
    size, weights = len(inspection.file.header.data), everything["weights"]
    in_file = {**everything, "bytes": size, "bits_per_weight": 8 * size / weights if weights else None}
    table.add_row(str(inspection.file.part or "the whole file"), "", *_figures(in_file))
    return table


def _ternary(types: dict[tuple[str, int], list[Statistics]]) -> Table:
    """A column for each type, as there are few of them."""
    table = _table("ternary tensors", ("",), [f"{name} (id {type_id})" for name, type_id in types])
    columns = [_properties(measured) for measured in types.values()]
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    return table


def _properties(measured: Sequence[Statistics]) -> dict[str, str]:
    scales = Scales(sum((m.scales.counts for m in measured), start=Scales().counts)).summary()
    return {
        "tensors": str(len(measured)),
        "grid": _counted(m.grid for m in measured),
        "a scale is shared by": _counted(m.shared for m in measured),
        "smallest scale but 0": _number(scales["min"]),
        "median": _number(scales["median"]),
        "largest": _number(scales["max"]),
        "negative scales": f"{scales['negative']:,}",
        "scales not finite": f"{scales['not_finite']:,}",
        "scales of 0": f"{scales['zero']:,}",
        "blocks of zeros": f"{sum(m.empty_blocks for m in measured):,}",
    }


def _codes(label: str, measured: Sequence[Statistics]) -> list[str]:
    """The share of each code; nothing for types that have none, or for empty tensors."""
    counts = [sum(int(m.codes[code]) for m in measured if m.codes is not None) for code in range(CODES)]
    if not sum(counts):
        return []
    lines = [f"codes of {label}, percent of {sum(counts):,} groups (1/32 is 3.125):"]
    for first in range(0, CODES, _CODES_A_LINE):
        shares = (f"{100 * n / sum(counts):6.3f}" for n in counts[first : first + _CODES_A_LINE])
        lines.append(f"{first:4}..{first + _CODES_A_LINE - 1:<3}{' '.join(shares)}")
    return lines


def _verdict(refusals: Sequence[str]) -> str:
    if not refusals:
        return "llama.cpp without the patch, at the pin: knows these types and this layout"
    return f"llama.cpp without the patch, at the pin: refuses or misreads the file, as {'; '.join(refusals)}"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _figures(values: dict[str, Any]) -> tuple[str, str, str, str]:
    bits = values["bits_per_weight"]
    return (
        f"{values['tensors']}",
        f"{values['weights']:,}",
        f"{values['bytes']:,}",
        "" if bits is None else f"{bits:.4f}",
    )


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _counted(names: Iterable[str]) -> str:
    """``128: 4, row: 1``; the name alone if it is that of all"""
    counts = Counter(names)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name}: {n}" for name, n in counts.most_common())
