"""What a person is told of weights that a conversion changed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sherry_gguf.convert.summary import Conversion, as_json, print_conversion


def test_layers_that_differ_in_their_number_share_a_row(capsys):
    losses = {f"model.layers.{i}.mlp.up_proj.weight": 0.25 + i / 100 for i in range(30)}
    losses["lm_head.weight"] = 0.125
    conversion = Conversion(Path("x.gguf"), "a source", [], losses, [])
    print_conversion(conversion, Console(width=120))
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["model.layers.*.mlp.up_proj.weight", "30", "0.395", "0.540", "model.layers.29.mlp.up_proj.weight"] in rows
    assert ["lm_head.weight", "1", "0.125", "0.125", "lm_head.weight"] in rows
    assert as_json(conversion)["losses"] == losses
