"""Names of tensors as a wrapper around a model makes them: torch.compile, data parallel training, PEFT, FSDP."""

from __future__ import annotations

import re
from typing import Final

# these are in no model's own names; the other two may be, and count at the beginning alone
_ANYWHERE: Final = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AT_THE_BEGINNING: Final = re.compile(r"^(?:module\.|base_model\.model\.)+")


def unwrapped(name: str) -> str:
    """The name of a tensor in the model itself: ``module.model.norm.weight`` -> ``model.norm.weight``."""
    return _AT_THE_BEGINNING.sub("", _ANYWHERE.sub("", name))
