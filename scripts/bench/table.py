"""What was measured, as figures, as a table and as a picture."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError

from .models import Model
from .running import Test

REFERENCE = "TQ2_0"
TYPES_OF_OURS = ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0")


def share_of_limit(model: Model, test: Test, tok_s: float, measured: dict[str, Any]) -> float:
    memory, int8 = measured["dram_gb_s"] * 1e9, measured["int8_gmac_s"] * measured["threads"] * 1e9
    if test.kind == "pp":
        return float(model.products * tok_s / int8)
    sequences = test.count if test.kind == "b" else 1
    return float(model.read_bytes * tok_s / sequences / memory)


def summarize(
    models: list[Model],
    tests: list[Test],
    rates: dict[tuple[Model, Test], list[float]],
    measured: dict[str, Any] | None,
    reference: str = REFERENCE,
) -> list[dict[str, Any]]:
    """A row for each test and model. measured: the limits, if they are those of what computes. reference: the type that
    others of the same shape are compared with."""
    results = []
    for test in tests:
        for model in models:
            tok_s = statistics.median(rates[model, test])
            references = [m for m in models if m.type == reference and m.shape == model.shape]
            ratio = tok_s / statistics.median(rates[references[0], test]) if len(references) == 1 else None
            results.append(
                {
                    "runtime": model.runtime,
                    "type": model.type,
                    "shape": model.shape,
                    "model": model.path.name,
                    "test": str(test),
                    "tok_s": tok_s,
                    "tok_s_best": max(rates[model, test]),
                    "tok_s_rounds": rates[model, test],
                    "bpw": model.bits,
                    "read_gb": model.read_bytes / 1e9,
                    f"ratio_to_{reference.lower()}": ratio,
                    "share_of_limit": share_of_limit(model, test, tok_s, measured) if measured else None,
                }
            )
    return results


def print_results(
    results: list[dict[str, Any]], label: Callable[[dict[str, Any]], str], reference: str = REFERENCE
) -> None:
    """label: what a row is called."""
    width = max(6, *(len(label(result)) for result in results))
    for test in dict.fromkeys(result["test"] for result in results):
        limit = "of int8 limit" if test.startswith("pp") else "of memory limit"
        print(f"\n{test:{width}} {'bpw':>6} {'tokens/s':>9} {'best':>8} {f'to {reference}':>9} {limit:>16}")
        for result in results:
            if result["test"] == test:
                ratio = result[f"ratio_to_{reference.lower()}"]
                ratio_text = "-" if ratio is None else f"{ratio:.2f}x"
                share = result["share_of_limit"]
                share_text = "-" if share is None else f"{share:.0%}"
                figures = f"{result['bpw']:6.3f} {result['tok_s']:9.2f} {result['tok_s_best']:8.2f}"
                print(f"{label(result):{width}} {figures} {ratio_text:>9} {share_text:>16}")


def load_pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise SherryError("--plot needs matplotlib: pip install matplotlib") from None


def plot(
    pyplot: Any, results: list[dict[str, Any]], label: Callable[[dict[str, Any]], str], title: str, file: Path
) -> None:
    """A panel for each test, a bar for each model."""
    tests = list(dict.fromkeys(result["test"] for result in results))
    figure, panels = pyplot.subplots(1, len(tests), figsize=(1 + 4.5 * len(tests), 4.5), squeeze=False)
    for panel, test in zip(panels[0], tests, strict=True):
        rows = [result for result in results if result["test"] == test]
        colors = ["tab:orange" if row["type"] in TYPES_OF_OURS else "tab:blue" for row in rows]
        bars = panel.bar(range(len(rows)), [row["tok_s"] for row in rows], color=colors)
        panel.bar_label(bars, fmt="%.1f", fontsize=8)
        panel.set_xticks(range(len(rows)), [label(row) for row in rows], rotation=45, ha="right", fontsize=8)
        panel.set_title(test)
        panel.set_ylabel("tokens/s")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
