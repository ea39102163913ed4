"""A JSON file of a checkpoint, which is data from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises SherryError for a file that is missing or damaged, or that holds no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SherryError(f"{path}: no such file; a checkpoint directory needs it") from None
    except (OSError, ValueError) as error:
        raise SherryError(f"{path}: cannot be read, {error}") from error
    if not isinstance(value, dict):
        raise SherryError(f"{path}: is not a JSON object")
    return value
