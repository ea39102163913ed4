"""llama-server with more clients than slots: each gets what one alone gets, and the server stays as it was."""

from __future__ import annotations

import pytest
from load_test import load

from sherry_gguf.convert import TypeChoice, convert

pytestmark = [pytest.mark.runtime, pytest.mark.usefixtures("pinned_gguf")]

MIB = 1 << 20


@pytest.fixture
def model(request, random_checkpoint, sherry_config, repository, tmp_path):
    """A file of that type: the demo model, or one that STQ1_0 holds."""
    if request.param == "SHERRY":
        return convert(repository / "tests/data/sotu-sherry", tmp_path / "x.gguf").outfile
    sherry = {**sherry_config, "granularity": "per_channel", "group_size": -1}
    directory = random_checkpoint("Llama", sherry=sherry, vocab_size=4096)
    return convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="stq1_0"), regrid="exact").outfile


@pytest.mark.parametrize("model", ["SHERRY", "STQ1_0"], indirect=True)
def test_answers_are_those_of_one_client(model, runtime):
    result = load(runtime.program("llama-server"), model, requests=120, clients=8, slots=4, seed=1)
    assert not result.wrong
    assert result.exit_status == 0
    assert set(result.answers) == {"again", "long", "cancelled", "no JSON", "no number"}
    assert result.rss_after - result.rss_before < 16 * MIB  # 1.5 were seen, after 400 requests and after 2,000
