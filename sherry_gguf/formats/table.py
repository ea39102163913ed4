"""The table of tensor types. Whoever adds a type adds its layout's file, and a line here.

The converter, ``inspect``, ``retag``, ``requantize``, gguf-py's registration and all messages read this table at the
time they need it, and have no list of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sherry_gguf.formats.q2_0 import Q2_0
from sherry_gguf.formats.q4_0 import Q4_0
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.formats.tq1_0 import TQ1_0
from sherry_gguf.formats.tq2_0 import TQ2_0

_TYPES: list[TensorType] = [STQ1_0, SHERRY, SHERRY_G32, SHERRY_2P, TQ1_0, TQ2_0, Q2_0, Q4_0]

LAST_UPSTREAM_ID: Final = 42  # of the pin's own types

VERSION_KEY: Final = "sherry.format_version"  # uint32 in a file; absent means 1
VERSION: Final = 2  # the largest that this package reads and writes


def tensor_types() -> tuple[TensorType, ...]:
    """All types, those of fewest bits per weight first."""
    return tuple(sorted(_TYPES, key=lambda tensor_type: tensor_type.bits_per_weight))


def named(name: str) -> TensorType | None:
    """The type of a name in either case, None for a type that is not in the table."""
    return next((tensor_type for tensor_type in _TYPES if tensor_type.name == name.upper()), None)


def known_as(type_id: int) -> list[TensorType]:
    """The types that have or had this id, those first whose own it is."""
    found = [tensor_type for tensor_type in _TYPES if type_id in tensor_type.ids]
    return sorted(found, key=lambda tensor_type: tensor_type.type_id != type_id)


def format_version(types: Iterable[TensorType]) -> int | None:
    """sherry.format_version of a file that has these types; None: the key is not written."""
    return max((t.format_version for t in types if t.format_version is not None), default=None)
