"""The tensor types that a user can name, and which tensor of the file gets which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sherry_gguf.checkpoint.declared import check_regex
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.table import named, tensor_types
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.formats.tq2_0 import TQ2_0
from sherry_gguf.weights.ternary import Rule

# gguf-py quantizes these in NumPy; the others only C does, in the built library. Names as llama-quantize spells them.
NUMPY_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
LIBRARY_TYPES = ("q4_K", "q5_K", "q6_K")
DEFAULT_EMBEDDING_TYPE = "q8_0"

# For the Sherry layers: for every tensor the smallest type that holds it, of all types or, by default, of these.
AUTO = "auto"
DEFAULT_TYPES = (SHERRY, SHERRY_G32)
DEFAULT_DENSE_TYPE = TQ2_0  # of dense ternary layers
DEFAULT_FOLDED_TYPE = "q8_0"  # of Fairy2i's, whose values are sums

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

_BY_LOWER_CASE = {name.lower(): name for name in (*NUMPY_TYPES, *LIBRARY_TYPES)}


def parse_type(text: str) -> str:
    """``Q4_k`` -> ``q4_K``; SherryError for a type that cannot be written here."""
    name = _BY_LOWER_CASE.get(text.lower())
    if name is None:
        raise SherryError(f"{text!r} is no type this converter writes; known are {', '.join(_BY_LOWER_CASE.values())}")
    return name


def outtypes() -> tuple[str, ...]:
    """What ``outtype`` can be: a type that holds Sherry layers exactly, or AUTO."""
    return (*(tensor_type.outtype for tensor_type in tensor_types()), AUTO)


def parse_outtype(text: str) -> str:
    """``Q2_0`` -> ``q2_0``; SherryError for a type that does not hold Sherry layers exactly."""
    name = text.lower()
    if name not in outtypes():
        raise SherryError(f"{text!r} is no type for Sherry layers; known are {', '.join(outtypes())}")
    return name


def parse_override(text: str) -> tuple[str, str]:
    """``REGEX=TYPE`` -> (regex, type), as llama-quantize has it; SherryError if it is not that."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise SherryError(f"{text!r} is not REGEX=TYPE, as in 'ffn_down=q8_0'")
    check_regex(pattern)
    return pattern, parse_type(name)


# What llama-quantize leaves in F32 or as it is, whatever types are asked for.
_KEPT = re.compile(r"(_norm|ffn_gate_inp(_shexp)?|pos_embd|token_types|conv1d(_[a-z]+)?|shortconv\.conv)\.weight$")


def has_choice(name: str, n_dims: int) -> bool:
    """Whether a tensor of the file can get another type: a weight of two or more dimensions, no norm and no router."""
    return n_dims > 1 and name.endswith(".weight") and not _KEPT.search(name)


@dataclass(frozen=True)
class TypeChoice:
    """What the user asked for, by GGUF tensor name; types as in NUMPY_TYPES and LIBRARY_TYPES, outtype in outtypes().

    The embedding's and the output's own option wins over ``overrides``, of which the first that matches counts, and
    these win over ``outtype``, which is for the Sherry layers alone: without it each gets the first of DEFAULT_TYPES
    that holds it. ``head``: the output is one of them. ``layers`` is their type where they are not ternary, so that
    none holds them.
    """

    token_embedding: str | None = None
    output: str | None = None
    overrides: Sequence[tuple[str, str]] = ()
    outtype: str | None = None
    layers: str | None = None
    head: bool = False

    @property
    def asked(self) -> TensorType | None:
        """The type that ``outtype`` names, the first of DEFAULT_TYPES without one; None for AUTO."""
        return DEFAULT_TYPES[0] if self.outtype is None else named(self.outtype)

    @property
    def candidates(self) -> Sequence[TensorType]:
        """The types of which a Sherry layer gets the first that holds it."""
        if self.outtype is None:
            return DEFAULT_TYPES
        return tensor_types() if self.asked is None else (self.asked,)

    def of(self, rule: Rule | None) -> TypeChoice:
        """The choice for layers of a dense ternary method, if they are of one and nobody chose another type."""
        if rule is None or self.outtype is not None:
            return self
        return (
            replace(self, layers=DEFAULT_FOLDED_TYPE)
            if rule.is_folded
            else replace(self, outtype=DEFAULT_DENSE_TYPE.outtype)
        )

    def for_tensor(self, name: str, *, is_sherry: bool) -> str | TensorType | None:
        """The type of a weight of two or more dimensions; None: as it is stored in the checkpoint.

        A TensorType stands for any type of a Sherry layer: which it is, ``outtype`` and its weights decide.
        """
        own = {TOKEN_EMBEDDING: self.token_embedding, OUTPUT: self.output}.get(name)
        if own is not None:
            return own
        for pattern, type_name in self.overrides:
            if re.search(pattern, name):
                return type_name
        if name == TOKEN_EMBEDDING or (name == OUTPUT and not self.head):
            return DEFAULT_EMBEDDING_TYPE
        return (self.layers or self.asked or SHERRY) if is_sherry else None

    def require_matches(self, names: Iterable[str]) -> None:
        """Raise SherryError if an override matches none of the tensors that have a choice: a typo, most likely."""
        names = list(names)
        for pattern, _ in self.overrides:
            if not any(re.search(pattern, name) for name in names):
                raise SherryError(
                    f"the type for {pattern!r} matches no tensor; there are names like {', '.join(names[:3])}"
                )

    def separate_output(self) -> bool:
        """Whether a tied embedding needs a second tensor: the output's type was asked for, and differs."""
        return self.output is not None and self.output != self.for_tensor(TOKEN_EMBEDDING, is_sherry=False)

    def library_types(self) -> set[str]:
        """The types asked for that only the built library can write."""
        asked = {self.token_embedding, self.output, *(name for _, name in self.overrides)}
        return {name for name in LIBRARY_TYPES if name in asked}
