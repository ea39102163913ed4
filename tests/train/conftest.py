"""A model small enough to be trained in seconds, and the way to train it."""

from __future__ import annotations

import json
import shutil

import pytest

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64}
KEYS = ("M", "N", "enable_zero_point", "eps", "granularity", "group_size", "quant_method", "w_bits")


@pytest.fixture(scope="session")
def untrained(tiny_checkpoint, tmp_path_factory):
    """A directory with a configuration and a tokenizer, and no weights."""
    directory = tmp_path_factory.mktemp("untrained")
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in KEYS}
    (directory / "config.json").write_text(json.dumps({**config, **SMALL, "dtype": "float32"}))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, directory)
    return directory


@pytest.fixture(scope="session")
def model_of(untrained):
    """A function: seed -> a new model of that kind in float32."""
    from transformers import set_seed

    from sherry_gguf.train.directory import open_model

    def make(seed=0):
        set_seed(seed)
        return open_model(untrained)[0]

    return make


@pytest.fixture
def train(untrained, heldout_text, tmp_path):
    """Train in this process; arguments go by name to the Options and Arguments that have them."""
    from dataclasses import fields

    from sherry_gguf.train.options import Arguments, Options
    from sherry_gguf.train.training import train

    def start(out="out", **changes):
        settings = {"model": untrained, "data": [heldout_text], "out": tmp_path / out, "ctx_size": 64}
        settings |= {"per_device_train_batch_size": 4, "max_steps": 6, "save_strategy": "no", "disable_tqdm": True}
        settings |= {"bf16": False, **changes}
        own = {field.name for field in fields(Options)}
        options = Options(**{key: value for key, value in settings.items() if key in own})
        return train(options, Arguments(**{key: value for key, value in settings.items() if key not in own})), options

    return start
