"""A JSON file of a checkpoint, which is data from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from sherry_gguf.checkpoint.regular import is_file
from sherry_gguf.errors import SherryError

_LARGEST: Final = 1 << 27  # bytes; the index of the largest model has a few million


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises SherryError for a file that is missing or damaged, or that holds no object."""
    if not is_file(path):
        raise SherryError(f"{path}: no such file; a checkpoint directory needs it")
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise SherryError(f"{path}: has {size:,} bytes, too many for a model's settings")
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise SherryError(f"{path}: cannot be read, it is nested too deeply") from None
    except SherryError:
        raise
    except (OSError, ValueError) as error:  # of a number with too many digits, ValueError
        raise SherryError(f"{path}: cannot be read, {error}") from error
    if not isinstance(value, dict):
        raise SherryError(f"{path}: is not a JSON object")
    return value
