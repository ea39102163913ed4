"""What the layers of a checkpoint look like, and how a conversion would read them. Some rows of each are read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.checkpoint.declared import architecture
from sherry_gguf.convert.plan import look_at_layers, make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.detect import Look


@dataclass(frozen=True)
class Members:
    """Layers that look alike. family: in words; zeros: their mean share; scales: which granularities were seen."""

    family: str
    layers: int
    first: str
    zeros: float
    scales: tuple[str, ...]


@dataclass(frozen=True)
class Families:
    """read_as: how ``convert`` would read the layers; refusal: why it would not."""

    directory: Path
    architecture: str
    members: tuple[Members, ...]
    read_as: str | None
    refusal: SherryError | None


def families(directory: Path) -> Families:
    """Raises SherryError for a checkpoint whose layers cannot be looked at."""
    checkpoint = Checkpoint(directory)
    looks: dict[str, dict[str, Look]] = defaultdict(dict)
    for name, look in look_at_layers(checkpoint, Source(directory)).items():
        looks[look.family.value][name] = look
    try:
        read_as, refusal = make_plan(checkpoint).summary(), None
    except SherryError as error:
        read_as, refusal = None, error
    members = tuple(_members(family, alike) for family, alike in looks.items())
    return Families(directory, str(architecture(checkpoint.config)), members, read_as, refusal)


def _members(family: str, looks: dict[str, Look]) -> Members:
    scales = sorted({str(look.granularity) for look in looks.values() if look.granularity})
    zeros = sum(look.zeros for look in looks.values()) / len(looks)
    return Members(family, len(looks), next(iter(looks)), zeros, tuple(scales))
