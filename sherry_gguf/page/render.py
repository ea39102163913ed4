"""Contents and measurements -> one HTML file that needs nothing else."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sherry_gguf.files.inspect import Inspection
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.page import charts
from sherry_gguf.page.contents import Codes, Contents, contents
from sherry_gguf.page.measured import Bench, Parity
from sherry_gguf.page.sizes import CLASSES

_MOST_DEVIATION = 0.25  # of a code's expected share: the full colour of the heat map
_TESTS = {"pp": "a prompt at once", "tg": "token by token", "b": "that many sequences at once"}
_ROLES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_page(
    inspection: Inspection,
    outfile: Path,
    *,
    parity: Parity | None = None,
    bench: Bench | None = None,
    force: bool = False,
) -> None:
    """Write the page. Raises SherryError if it may not be written; only ``force`` replaces an existing file."""
    require_free(outfile, force, [inspection.file.path])
    text = page(contents(inspection), parity, bench)
    with temporary_beside(outfile) as temporary:
        temporary.write_text(text, encoding="utf-8")
        rename_durably(temporary, outfile, force)


def page(found: Contents, parity: Parity | None = None, bench: Bench | None = None) -> str:
    """The HTML. Every name of the file is escaped, as a file may say what it likes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sherry_gguf.page", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pictures = {"sizes": _sizes(found), **_codes(found.codes), "scales": _scales(found), "rates": _rates(bench)}
    return environment.get_template("page.html.j2").render(
        said=found.said,
        file=Path(found.said["file"]).name,
        sizes=found.sizes,
        totals={label: sum(parts.values()) for label, parts in found.sizes.items()},
        classes=CLASSES,
        codes=found.codes,
        scales=found.scales,
        parity=parity,
        bench=bench,
        pictures={name: Markup(picture) for name, picture in pictures.items()},
    )


def _sizes(found: Contents) -> str:
    unit, name = (
        (1_000_000_000, "GB") if max(sum(p.values()) for p in found.sizes.values()) >= 1e10 else (1_000_000, "MB")
    )
    return charts.stacked_bars("Bytes of this file beside other types", found.sizes, unit, name)


def _codes(codes: Codes | None) -> dict[str, str]:
    if codes is None:
        return {}
    zeros = charts.columns(
        "Where the zero of a group is", [f"place {n + 1}" for n in range(GROUP)],
        [int(n) / codes.groups for n in codes.zeros], 1 / GROUP, "expected 25%",
    )  # fmt: skip
    names = [f"code {code} ({_pattern(code)})" for code in range(CODES)]
    shares = [int(n) / codes.groups for n in codes.counts]
    histogram = charts.columns("How often each code occurs", names, shares, 1 / CODES, "expected 3.125%")
    if not codes.by_layer:
        return {"zeros": zeros, "codes": histogram}
    of_layers = {layer: counts / counts.sum() for layer, counts in codes.by_layer.items()}
    heat = charts.heat_map(
        "Codes of each layer, against the share that is expected",
        [str(layer) for layer in of_layers],
        [str(code) if code % 4 == 0 else "" for code in range(CODES)],
        [[(CODES * share - 1) / _MOST_DEVIATION for share in shares] for shares in of_layers.values()],
        [
            [f"layer {layer}, {name}: {share:.3%}" for name, share in zip(names, shares, strict=True)]
            for layer, shares in of_layers.items()
        ],
    )
    return {"zeros": zeros, "codes": histogram, "codes_by_layer": heat}


def _pattern(code: int) -> str:
    return " ".join("0+-"[t] for t in PATTERNS[code])


def _scales(found: Contents) -> str:
    """The median scale of each matrix, against the mean of those medians."""
    if not found.scales:
        return ""
    roles = sorted(found.scales, key=lambda role: (_ROLES.index(role) if role in _ROLES else len(_ROLES), role))
    layers = sorted({layer for medians in found.scales.values() for layer in medians})
    every = [median for medians in found.scales.values() for median in medians.values()]
    mean = sum(every) / len(every)
    reach = max(abs(median - mean) for median in every) or 1.0
    table: list[list[Any]] = [[found.scales[role].get(layer) for role in roles] for layer in layers]
    return charts.heat_map(
        "Median scale of each matrix",
        [str(layer) for layer in layers],
        [role.removeprefix("attn_").removeprefix("ffn_").replace("output", "o") for role in roles],
        [[None if cell is None else (cell - mean) / reach for cell in row] for row in table],
        [
            [
                f"layer {layer}, {role}: {cell:.4g}" if cell is not None else ""
                for role, cell in zip(roles, row, strict=True)
            ]
            for layer, row in zip(layers, table, strict=True)
        ],
    )


def _rates(bench: Bench | None) -> str:
    if bench is None:
        return ""
    tests = dict.fromkeys(speed.test for speed in bench.speeds)
    pictures = []
    for test in tests:
        rows = [(speed.label, speed.rate, speed.limit) for speed in bench.speeds if speed.test == test]
        picture = charts.rates(f"{test}: tokens per second", rows)
        caption = f"{html.escape(test)}, {_TESTS[test.rstrip('0123456789')]}"
        pictures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return "".join(pictures)
