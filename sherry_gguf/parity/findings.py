"""What a comparison found, the judgement over it, and how they are shown: a table or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from sherry_gguf.parity.scoring import Divergence
from sherry_gguf.weights.compare import WeightCheck

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Limits:
    """What a file may differ from its checkpoint by: perplexity and top-1 in percent, KL divergence in nats."""

    max_perplexity_change: float
    max_kld: float
    min_top1: float


@dataclass(frozen=True)
class TokenCheck:
    """How many tokens the checkpoint's tokenizer and the GGUF's own make of the text, and where they first differ.

    first_difference: index of a token, None where all are equal.
    """

    in_torch: int
    in_gguf: int
    first_difference: int | None

    @classmethod
    def of(cls, in_torch: I32, in_gguf: I32) -> TokenCheck:
        """Compare int32[n] with int32[m]."""
        common = min(len(in_torch), len(in_gguf))
        different = np.flatnonzero(in_torch[:common] != in_gguf[:common])
        first = int(different[0]) if different.size else None if len(in_torch) == len(in_gguf) else common
        return cls(len(in_torch), len(in_gguf), first)


@dataclass(frozen=True)
class Step:
    """How far from PyTorch the runtime is with this cause of difference and those of the steps before."""

    cause: str
    divergence: Divergence


@dataclass(frozen=True)
class Findings:
    """Everything one comparison found out. ``steps`` lead from PyTorch to the file, which is the last one.

    lossy_layers: how many layers the reference has quantized, as they are no Sherry layers in the checkpoint
    calibrated: layer -> |w_q - w| / |w| of those for which the reference has the weights of the file
    """

    model: str
    gguf: str
    text: str
    ctx_size: int
    chunks: int
    weights: WeightCheck
    tokens: TokenCheck
    steps: tuple[Step, ...]
    limits: Limits
    lossy_layers: int = 0
    calibrated: Mapping[str, float] | None = None

    @property
    def total(self) -> Divergence:
        """The file against PyTorch."""
        return self.steps[-1].divergence

    def failures(self) -> list[str]:
        """One line for each thing that should hold and does not, found beside allowed."""
        w, t, d, limits = self.weights, self.tokens, self.total, self.limits
        # each condition is what must hold, so that a NaN fails it
        checks = [
            (
                w.wrong_weights == 0,
                f"{w.wrong_weights:,} of {w.weights:,} weights are not the trained ones, the first in {w.first_wrong}",
            ),
            (
                w.wrong_scales == 0,
                f"{w.wrong_scales:,} of {w.scales:,} scales are not the trained ones in fp16 "
                f"(off by {w.max_scale_error:.2g} of their value at most), the first in {w.first_wrong}",
            ),
            (
                t.first_difference is None,
                f"the GGUF's tokenizer makes {t.in_gguf:,} tokens of the text, the checkpoint's {t.in_torch:,}; "
                f"they first differ at token {t.first_difference}",
            ),
            (
                abs(d.perplexity_change) <= limits.max_perplexity_change,
                f"perplexity changes by {d.perplexity_change:+.4f}%, more than {limits.max_perplexity_change:g}%",
            ),
            (d.kld_mean <= limits.max_kld, f"mean KL divergence {d.kld_mean:.6f} is above {limits.max_kld:g}"),
            (
                100 * d.same_top1 >= limits.min_top1,
                f"the same top token at {100 * d.same_top1:.2f}% of the positions, less than {limits.min_top1:g}%",
            ),
        ]
        return [message for holds, message in checks if not holds]

    def notes(self) -> list[str]:
        """One line for each thing to know that is no failure."""
        notes = []
        if self.calibrated:
            notes.append(
                f"the file was calibrated: PyTorch runs with the file's own weights in {len(self.calibrated)} layers, "
                f"which differ from the checkpoint's by {max(self.calibrated.values()):.1%} at most (|w_q - w| / |w|); "
                f"what is compared is the runtime alone"
            )
        elif self.weights.tensors == 0:
            notes.append("the file has no SHERRY tensor; nothing to compare bit by bit")
        if self.lossy_layers:
            notes.append(
                f"PyTorch runs the quantized model, not the checkpoint's own: "
                f"{self.lossy_layers} layers are changed by quantizing them"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """Plain values in full precision, None for NaN and infinities; ``ok`` and ``failures`` are the verdict."""
        failures = self.failures()
        verdict = {"notes": self.notes(), "ok": not failures, "failures": failures}
        fields: dict[str, Any] = _finite({**asdict(self), "total": asdict(self.total), **verdict})
        return fields

    def show(self, console: Console) -> None:
        """The tables and the verdict for people; plain text where the console is no terminal.

        ``console`` must not read markup: names of files may have brackets.
        """
        console.print(
            f"{self.gguf} in llama.cpp against {self.model} in PyTorch (fp32), on {self.text}: "
            f"{self.chunks} chunks of {self.ctx_size} tokens, {self.total.positions:,} predictions",
            highlight=False,
        )
        console.print(self._divergences())
        console.print()
        console.print(self._exact())
        console.print()
        for line in self.notes():
            console.print(f"note: {line}", highlight=False)
        failures = self.failures()
        for line in failures:
            console.print("FAILED", line, style="red", highlight=False)
        if not failures:
            console.print("PASSED: every limit holds", style="green", highlight=False)

    def _divergences(self) -> Table:
        table = Table("against PyTorch", box=None, pad_edge=False)
        for heading in ("perplexity", "change %", "mean KLD", "99.9% KLD", "top-1 %", "max |Δ|"):
            table.add_column(heading, justify="right")
        d = self.total
        table.add_row("PyTorch", f"{d.base_perplexity:.4f}")
        for step in self.steps[:-1]:
            table.add_row(f"+ {step.cause}", *_cells(step.divergence))
        table.add_row(f"+ {self.steps[-1].cause}", *_cells(d), style="bold")
        errors = (f"{100 * d.perplexity_ratio_se:.4f}", f"{d.kld_mean_se:.1e}", "", f"{100 * d.same_top1_se:.2f}")
        table.add_row("  ± standard error", "", *errors)
        limits = self.limits
        table.add_row(
            "  limit", "", f"±{limits.max_perplexity_change:g}", f"{limits.max_kld:g}", "", f"{limits.min_top1:g}"
        )
        return table

    def _exact(self) -> Table:
        w, t = self.weights, self.tokens
        table = Table("what must be equal", "wrong", "of", "", box=None, pad_edge=False)
        table.add_row("Sherry weights", f"{w.wrong_weights:,}", f"{w.weights:,}", f"in {w.tensors} tensors")
        rounding = f"{w.max_scale_error:.1e} of a value at most is rounded off"
        table.add_row("Sherry scales", f"{w.wrong_scales:,}", f"{w.scales:,}", rounding)
        where = "" if t.first_difference is None else f"from token {t.first_difference:,} on"
        table.add_row("tokens", "0" if not where else "some", f"{t.in_torch:,}", where)
        return table


def _cells(d: Divergence) -> tuple[str, ...]:
    return (
        f"{d.other_perplexity:.4f}",
        f"{d.perplexity_change:+.4f}",
        f"{d.kld_mean:.1e}",
        f"{d.kld_p999:.1e}",
        f"{100 * d.same_top1:.2f}",
        f"{d.max_logit_difference:.2g}",
    )


def _finite(value: Any) -> Any:
    """The same, with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
