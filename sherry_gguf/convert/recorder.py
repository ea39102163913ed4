"""What upstream's converter is told of each tensor of the file, and what is remembered of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sherry_gguf.convert.type_choice import DEFAULT_EMBEDDING_TYPE, OUTPUT, TOKEN_EMBEDDING, TypeChoice, has_choice
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.table import named
from sherry_gguf.formats.tensor_type import TensorType


@dataclass
class Recorder:
    """One per instance of upstream's converter. Names are those of the file but for ``layers``.

    types         what the user asked for
    sherry_types  GGUF name -> type of the Sherry layers for which nobody chose a type; else that asked for

    layers        the Sherry layers: the names that upstream calls them -> the checkpoint's
    sums          of these, by the names of upstream, those that are two planes, whose weights are no scales
    stock         linear layers that get DEFAULT_EMBEDDING_TYPE where nobody chose a type, by the names of upstream
    baked         the tensors that these became
    summed        of these, what became of sums
    exact         of baked, the tensors that nobody chose another type for
    with_choice   all tensors that can have another type than the checkpoint's
    places        the Sherry layers, by the checkpoint's names -> the tensors that they became
    chosen        name -> type, as gguf-py names it, of those that got one
    otherwise     the Sherry layers, by the checkpoint's names, for which the user chose a type
    """

    types: TypeChoice
    sherry_types: Mapping[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    sums: set[str] = field(default_factory=set)
    stock: set[str] = field(default_factory=set)
    baked: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    exact: set[str] = field(default_factory=set)
    with_choice: list[str] = field(default_factory=list)
    places: dict[str, set[str]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    otherwise: list[str] = field(default_factory=list)

    def choose(self, layer: str, name: str, n_dims: int) -> str | None:
        """The type of a tensor that upstream made of ``layer``, as gguf-py names it; None leaves it to upstream."""
        is_sherry = layer in self.layers
        chosen = None
        if has_choice(name, n_dims):
            self.with_choice.append(name)
            chosen = self.types.for_tensor(name, is_sherry=is_sherry)
            if chosen is None and layer in self.stock:
                chosen = DEFAULT_EMBEDDING_TYPE
        if is_sherry:
            self.baked.add(name)
            self.places.setdefault(self.layers[layer], set()).add(name)
        if layer in self.sums:
            self.summed.add(name)
        if isinstance(chosen, TensorType):
            self.exact.add(name)
            chosen = self.sherry_types.get(name, chosen.name)
        elif is_sherry and chosen is not None:
            self.otherwise.append(self.layers[layer])
        if chosen is not None:
            self.chosen[name] = chosen.upper()
        return self.chosen.get(name)

    def require_stored(self, stored: Mapping[str, str], rows: Mapping[str, int], blocks: Mapping[str, int]) -> None:
        """Raise SherryError for a choice that matched nothing, or that upstream did not follow.

        stored: name -> type of the tensors to write; rows: name -> weights of a row; blocks: type -> its block
        """
        self.types.require_matches(self.with_choice)
        for name, wanted in self.chosen.items():
            # Upstream warns and falls back to F16 where a row does not fit; here nothing falls back.
            if stored[name] != wanted:
                way = {TOKEN_EMBEDDING: Way.EMBEDDING_TYPE, OUTPUT: Way.OUTPUT_TYPE}.get(name, Way.OTHER_TYPE)
                raise SherryError(
                    f"{name}: rows of {rows[name]} weights are no multiple of {blocks[wanted]}, which {wanted} needs",
                    way(name),
                )

    def main_type(self, stored: Mapping[str, str], weights: Mapping[str, int]) -> str | None:
        """The type that general.file_type names, of the exact tensors': the one of most weights. None without any.

        This project's own types go first, then those that not every reader has. stored, weights: of all tensors.
        """
        counts: Counter[str] = Counter()
        for name in self.exact:
            counts[stored[name]] += weights[name]

        def rank(type_name: str) -> tuple[bool, bool, int]:
            tensor_type = named(type_name)
            if tensor_type is None:
                return False, False, counts[type_name]
            return tensor_type.format_version is not None, not tensor_type.is_stock, counts[type_name]

        return max(counts, key=rank, default=None)
