"""What llama-perplexity --kl-divergence prints of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sherry_gguf.errors import SherryError

_NUMBER = r" *: *(-?[\d.]+)"
_FIGURES = (
    r"Mean PPL\(Q\)" + _NUMBER,
    rf"Mean +KLD{_NUMBER} *± *([\d.]+)",
    r"99\.9% +KLD" + _NUMBER,
    "Same top p" + _NUMBER,
)


@dataclass(frozen=True)
class Scores:
    """A file beside the one whose logits were kept: perplexity, KL divergence in nats, the same top-1 in %."""

    perplexity: float
    divergence: float
    error: float  # standard error of the divergence
    tail: float  # 99.9% of the divergences are below it
    top: float


def scores(said: str) -> Scores:
    """Of all that the program printed. Raises SherryError where a figure is missing."""
    found = [re.search(f"^{figure}", said, re.MULTILINE) for figure in _FIGURES]
    if None in found:
        raise SherryError(f"llama-perplexity gives no figures: {said[-300:]}")
    return Scores(*(float(number) for match in found if match is not None for number in match.groups()))
