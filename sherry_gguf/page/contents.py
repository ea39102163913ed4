"""What the page says of a file, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf.files.inspect import Inspected, Inspection, as_json
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.page.sizes import layer_of, sizes

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Codes:
    """How often each code occurs.

    counts    int64[32], of all tensors that have codes
    by_layer  layer -> int64[32]
    """

    counts: I64
    by_layer: dict[int, I64]

    @property
    def groups(self) -> int:
        return int(self.counts.sum())

    @property
    def zeros(self) -> I64:
        """int64[4]: how many groups have their zero at each place."""
        at = (PATTERNS == 0).argmax(axis=1)
        return np.bincount(at, weights=self.counts, minlength=GROUP).astype(np.int64)

    @property
    def entropy(self) -> float:
        """Bits that a code carries; 5 where all are as frequent."""
        share = self.counts[self.counts > 0] / self.groups
        return float(-(share * np.log2(share)).sum())


@dataclass(frozen=True)
class Contents:
    """said: what ``inspect --json`` prints; sizes: see ``sizes.sizes``; codes: None for types without.

    scales  role of a tensor in its layer -> layer -> the median of its scales
    """

    said: dict[str, Any]
    sizes: dict[str, dict[str, int]]
    codes: Codes | None
    scales: dict[str, dict[int, float]]


def contents(inspection: Inspection) -> Contents:
    """Gather the page's values from what was inspected; reads nothing more."""
    tensors = [inspected.tensor for inspected in inspection.tensors]
    return Contents(as_json(inspection), sizes(tensors), _codes(inspection.tensors), _scales(inspection.tensors))


def _codes(tensors: Sequence[Inspected]) -> Codes | None:
    counts, by_layer = np.zeros(CODES, dtype=np.int64), dict[int, I64]()
    for tensor in tensors:
        if tensor.statistics is None or tensor.statistics.codes is None:
            continue
        counts += tensor.statistics.codes
        if (place := layer_of(tensor.tensor.name)) is not None:
            by_layer[place[0]] = by_layer.get(place[0], 0) + tensor.statistics.codes
    by_layer = {layer: by_layer[layer] for layer in sorted(by_layer) if by_layer[layer].any()}
    return Codes(counts, by_layer) if counts.any() else None


def _scales(tensors: Sequence[Inspected]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for tensor in tensors:
        place = layer_of(tensor.tensor.name)
        median = None if tensor.statistics is None else tensor.statistics.scales.summary()["median"]
        if place is not None and median is not None:
            found.setdefault(place[1], {})[place[0]] = float(median)
    return found
