"""Python in a model's folder: a canary that leaves a file where it is executed, at every load of upstream's."""

from __future__ import annotations

import ast
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint.remote_code import remote_code
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.train.directory import open_model

CANARY = """
import pathlib
from transformers import PretrainedConfig, PreTrainedTokenizerFast
pathlib.Path({sung!r}).write_text("executed")
class CanaryConfig(PretrainedConfig):
    model_type = "no_known_type"
class Canary(PreTrainedTokenizerFast):
    pass
"""


def with_canary(folder: Path, source: Path, *, known: bool = False) -> Path:
    """A copy of a model whose tokenizer is code; known: transformers has a configuration and a tokenizer for it too."""
    model, sung = folder / "model", folder / "sung"
    shutil.copytree(source, model)
    (model / "canary.py").write_text(CANARY.format(sung=str(sung)))
    auto_map = {"AutoTokenizer": [None, "canary.Canary"], "AutoConfig": "canary.CanaryConfig"}
    config = json.loads((model / "config.json").read_text()) | {"auto_map": auto_map}
    tokenizer = json.loads((model / "tokenizer_config.json").read_text()) | {"auto_map": auto_map}
    if not known:
        config["model_type"], tokenizer["tokenizer_class"] = "no_known_type", "Canary"
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return model


def loads() -> Iterator[tuple[str, str]]:
    """Every call of a ``from_pretrained`` in upstream's converter, as it is written: (where, source text)."""
    for path in sorted((llama_cpp.source() / "conversion").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr == "from_pretrained":
                yield f"{path.name}:{node.lineno}", ast.unparse(node)


def executed(load: str, model: Path) -> None:
    names = {**vars(transformers), "AutoConfig": transformers.AutoConfig, "AutoTokenizer": transformers.AutoTokenizer}
    exec(load, names, {"self": SimpleNamespace(dir_model=model), "dir_model": model})


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch, tmp_path):
    """transformers keeps copies of the code that it executed."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_no_load_of_upstreams_executes(tiny_checkpoint, tmp_path):
    model = with_canary(tmp_path, tiny_checkpoint)
    found = list(loads())
    assert len(found) > 20
    for where, load in found:
        with remote_code(), pytest.raises(SherryError, match=r"auto_map names canary\.py for Auto") as caught:
            executed(load, model)
        assert caught.value.ways[0].way is Way.TRUST_REMOTE_CODE, where
        assert not (tmp_path / "sung").exists(), where


def test_the_canary_sings_where_it_is_allowed(tiny_checkpoint, tmp_path):
    model = with_canary(tmp_path, tiny_checkpoint)
    with remote_code(allowed=True):
        transformers.AutoConfig.from_pretrained(model)  # which says nothing of it: no question is asked
    assert (tmp_path / "sung").exists()


def test_without_the_guard_it_would(tiny_checkpoint, tmp_path):
    model = with_canary(tmp_path, tiny_checkpoint)
    executed("AutoTokenizer.from_pretrained(self.dir_model, trust_remote_code=True)", model)
    assert (tmp_path / "sung").exists()


def test_transformers_own_classes_are_taken_where_there_are_some(tiny_checkpoint, tmp_path):
    model = with_canary(tmp_path, tiny_checkpoint, known=True)
    with remote_code():
        executed("AutoTokenizer.from_pretrained(self.dir_model, trust_remote_code=True)", model)
    assert not (tmp_path / "sung").exists()


def test_other_loaders_execute_nothing_either(tiny_checkpoint, tmp_path):
    """Those that are not wrapped meet the guard where the file would be executed."""
    model = with_canary(tmp_path, tiny_checkpoint)
    utils = transformers.dynamic_module_utils
    with remote_code(), pytest.raises(SherryError, match=r"canary\.py: code of a model is not executed"):
        utils.get_class_from_dynamic_module("canary.Canary", str(model))
    with remote_code(), pytest.raises(ValueError, match="custom code"):
        utils.resolve_trust_remote_code(None, str(model), has_local_code=False, has_remote_code=True)
    assert not (tmp_path / "sung").exists()


def test_training_executes_nothing(tiny_checkpoint, tmp_path):
    """It names the file as a conversion does, and no flag, because it has none for it."""
    with pytest.raises(SherryError, match=r"auto_map names canary\.py for AutoConfig") as caught:
        open_model(with_canary(tmp_path, tiny_checkpoint))
    assert caught.value.ways == ()
    assert not (tmp_path / "sung").exists()


def test_training_takes_transformers_own_classes(tiny_checkpoint, tmp_path):
    open_model(with_canary(tmp_path, tiny_checkpoint, known=True))
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_convert_executes_nothing_and_asks_nothing(more, random_checkpoint, sherry_config, tmp_path):
    """HunYuan's converter loads the tokenizer with trust_remote_code=True. The terminal answers y."""
    model = with_canary(tmp_path, random_checkpoint("HunYuanDenseV1", sherry=sherry_config))
    command = [sys.executable, "-m", "sherry_gguf.convert", str(model), "--outfile", str(tmp_path / "x.gguf"), *more]
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=300)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "auto_map names canary.py" in line
    assert "--trust-remote-code" in done.stderr
    assert not (tmp_path / "sung").exists()
    assert not (tmp_path / "x.gguf").exists()
