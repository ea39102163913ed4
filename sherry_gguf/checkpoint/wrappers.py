"""Names of tensors as a wrapper around a model makes them: torch.compile, data parallel training, PEFT, FSDP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sherry_gguf.errors import SherryError

# these are in no model's own names; the other two may be, and count at the beginning alone
_ANYWHERE: Final = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AT_THE_BEGINNING: Final = re.compile(r"^(?:module\.|base_model\.model\.)+")


def unwrapped(name: str) -> str:
    """The name of a tensor in the model itself: ``module.model.norm.weight`` -> ``model.norm.weight``."""
    return _AT_THE_BEGINNING.sub("", _ANYWHERE.sub("", name))


def require_unwrapped(where: Path, names: Iterable[str]) -> None:
    """Raise SherryError for the first of the names that a wrapper gave. where: what has them, for the message."""
    for name in names:
        if unwrapped(name) != name:
            raise SherryError(
                f"{where}: {name} is a name that a wrapper gives, where the model's is {unwrapped(name)}; "
                f"save the model that is in the wrapper"
            )
