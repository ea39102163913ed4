"""Models by their id on the Hub: when one is taken for an id, what is fetched, and what is said without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from sherry_gguf.checkpoint.hub import fetched, needed
from sherry_gguf.convert import convert
from sherry_gguf.errors import SherryError

# what is in repositories beside a model, and is not read
OTHERS = [
    ".gitattributes", "LICENSE", "model.gguf", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin",
    "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "images/picture.png",
    "checkpoint-10/model.safetensors", "original/consolidated.00.pth", "pytorch_model.bin.index.json",
    "modeling_own.py",
]  # fmt: skip


@pytest.mark.parametrize("name", ["angelslim-tiny-g128", "sotu-sherry"])
def test_what_is_needed_is_all_that_a_conversion_reads(name, repository, tmp_path, pinned_gguf):
    model = repository / "tests/data" / name
    own = sorted(path.name for path in model.iterdir())
    assert needed([*OTHERS, *own]) == own
    chosen = tmp_path / "chosen" / name
    chosen.mkdir(parents=True)
    for file in needed([*OTHERS, *own]):
        shutil.copy(model / file, chosen)
    whole, part = (
        convert(folder, tmp_path / f"{number}.gguf", verify=False) for number, folder in enumerate((model, chosen))
    )
    assert part.outfile.read_bytes() == whole.outfile.read_bytes()


def test_weights_are_those_that_would_be_read():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed([*shards, "pytorch_model.bin"]) == sorted(shards)
    assert needed(["model.safetensors", "adapter_model.safetensors"]) == ["model.safetensors"]
    assert needed(["pytorch_model.bin", "optimizer.bin", "training_args.bin"]) == ["pytorch_model.bin"]


def test_what_lies_beside_the_weights():
    assert needed(["README.md", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "docs/a.jinja"]) == [
        "README.md", "additional_chat_templates/tool_use.jinja", "chat_template.jinja",
    ]  # fmt: skip
    assert needed(["configuration_own.py"]) == []
    assert needed(["configuration_own.py"], code=True) == ["configuration_own.py"]


def test_a_folder_wins_over_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "organization" / "model").mkdir(parents=True)
    folder = type(tmp_path)("organization/model")
    assert fetched(folder) == folder
    mistyped = type(tmp_path)("organization/modle")
    assert fetched(mistyped) == mistyped
    with pytest.raises(SherryError, match="is no id on the Hub"):
        fetched(folder, "main")


@pytest.mark.parametrize(
    "offline",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["told to ask no network", "nobody answers"],
)
def test_without_a_network_there_is_one_line(offline, tmp_path):
    environment = {**os.environ, **offline, "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "sherry_gguf", "convert", "organization/model", "--revision", "v1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sherry-gguf convert: error: organization/model: is no folder here, and the Hub cannot be reached: check the "
        "network; download it elsewhere (`hf download organization/model --local-dir DIR`), and convert that folder\n"
    )


def test_a_snapshot_that_is_there_needs_no_network(tiny_checkpoint, tmp_path):
    """As the Hub's library lays it out: an earlier download."""
    repository = tmp_path / "hub/hub/models--organization--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "sherry_gguf", "convert", "organization/model", "--no-verify"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*-SHERRY.gguf"))) == 1
