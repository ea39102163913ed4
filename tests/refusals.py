"""Refusals as the person at a command line reads them, with ways out as flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from sherry_gguf.commands import convert
from sherry_gguf.errors import SherryError, Way


@contextmanager
def refused(match: str, ways: Mapping[Way, str] = convert.WAYS) -> Iterator[pytest.ExceptionInfo[SherryError]]:
    """As ``pytest.raises(SherryError, match=...)``, of the message that a command prints."""
    with pytest.raises(SherryError) as caught:
        yield caught
    said = caught.value.worded(ways)
    assert re.search(match, said), said
