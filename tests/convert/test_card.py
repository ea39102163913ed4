"""The model card: what it says of a file is so."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from sherry_gguf import cli
from sherry_gguf.convert.card import read_parity
from sherry_gguf.errors import SherryError

pytestmark = pytest.mark.usefixtures("pinned_gguf")

PARITY = {
    "total": {"base_perplexity": 31.5, "other_perplexity": 31.25, "kld_mean": 0.0004, "same_top1": 0.982},
    "text": "held/out.txt", "gguf": "x.gguf", "ok": True, "chunks": 4, "ctx_size": 512,
}  # fmt: skip


def test_a_card(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "parity.json").write_text(json.dumps(PARITY))
    out = tmp_path / "out"
    out.mkdir()
    line = ["convert", str(tiny_checkpoint), "--outfile", str(out / "x.gguf"), "--split-max-size", "1500K", "--card"]
    assert cli.main([*line, "--parity", str(tmp_path / "parity.json"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"Converted from `{tiny_checkpoint.name}`" in card
    assert "base_model" not in card
    assert "\n# x\n" in card
    assert said["verdict"] in card
    assert len(said["files"]) > 1
    for file in out.glob("*.gguf"):
        content = file.read_bytes()
        assert f"| {file.name} | {len(content):,} | {hashlib.sha256(content).hexdigest()} |" in card
    for name, found in said["types"].items():
        assert f"| {name} | {found['tensors']} | {found['weights']:,} |" in card
    assert "| 31.5000 | 31.2500 | 0.0004 | 98.20% |" in card
    (named,) = set(re.findall(r"-m (\S+)", card))
    assert (out / named).is_file()

    assert cli.main([*line, "--outfile", str(out / "y.gguf")]) == 1
    assert "README.md exists; choose another --outfile; replace it with --force" in capsys.readouterr().err
    assert not (out / "y.gguf").exists()


def test_the_models_own_card_is_not_replaced(tiny_checkpoint, tmp_path, capsys):
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("its own")
    assert cli.main(["convert", str(tmp_path), "--card", "--force"]) == 1
    assert "README.md is an input, and would be replaced" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "its own"
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "7"])
def test_other_files_are_no_parity(content, tmp_path):
    if content is not None:
        (tmp_path / "parity.json").write_text(content)
    with pytest.raises(SherryError, match=r"parity\.json: (cannot be read as JSON|has no figures of parity)"):
        read_parity(tmp_path / "parity.json")
