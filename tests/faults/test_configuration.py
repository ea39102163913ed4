"""A configuration that is damaged or lies, and tokenizers."""

from __future__ import annotations

import pytest
from faults import CONFIGURATION


@pytest.mark.parametrize("fault", CONFIGURATION, ids=lambda fault: fault.name)
def test_refused(fault, meets):
    meets(fault)
