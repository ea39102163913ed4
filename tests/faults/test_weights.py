"""Weights that are damaged, that lie, or that lead elsewhere."""

from __future__ import annotations

import pytest
from faults import WEIGHTS


@pytest.mark.parametrize("fault", WEIGHTS, ids=lambda fault: fault.name)
def test_refused(fault, meets):
    meets(fault)
