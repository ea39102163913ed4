"""Limits of a process and of a disk, which end a conversion in one line."""

from __future__ import annotations

import sys

import pytest
from faults import LIMITS


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to these limits")
@pytest.mark.parametrize("fault", LIMITS, ids=lambda fault: fault.name)
def test_refused(fault, meets):
    meets(fault)
