"""Checkpoints to convert: the shipped one, and small random ones of the architectures that are supported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from remaking import FOREIGN

from sherry_gguf import llama_cpp
from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.cache import cache_dir
from sherry_gguf.llama_cpp.upstream import PatchSet

TESTS = Path(__file__).parent
DATA = TESTS / "data"

# What makes a test slow: a model that is converted, trained or executed, a program in a process of its own.
_MODELS = {"tiny_checkpoint", "random_checkpoint"}
_PROGRAMS = {
    "test_builds.py", "test_cli.py", "test_commands.py", "test_convert.py", "test_demo_model.py", "test_fetch.py",
    "test_package.py", "test_refresh.py", "test_scripts.py", "test_style.py", "test_training.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use, so that `make quick` can leave out those that take time or a compiler."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        folder = item.path.relative_to(TESTS).parts[0]
        if "runtime" in fixtures:
            item.add_marker("runtime")
        if item.path.name in _PROGRAMS or (fixtures & _MODELS and folder != "checkpoint"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A real checkpoint of the published trainer: latent bf16, per_group 128 (tests/data/README.md)."""
    return DATA / "angelslim-tiny-g128"


@pytest.fixture(scope="session")
def heldout_text() -> Path:
    return DATA / "sotu-heldout.txt"


@pytest.fixture(scope="session")
def runtime() -> llama_cpp.Build:
    """The patched llama.cpp with its native tests; built on first use, which takes minutes."""
    return llama_cpp.build(tests=True)


@pytest.fixture(scope="session")
def llama_cpp_python(runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with llama-cpp-python out of the pin's sdist, without a llama.cpp of its own.

    pip gets its build backend, and a cache that it wants, from the package index. In CI a failure is one.
    """
    pin = PatchSet.load().pin
    sdist = fetch.archive_path(cache_dir(), pin)
    # pip reads name and version off the file's name, which has a hash in the cache
    folder = tmp_path_factory.mktemp("bindings")
    named = folder / f"llama_cpp_python-{pin.version}.tar.gz"
    named.symlink_to(sdist)
    target = folder / "site"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--target", target]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, named, "diskcache"],
        env={**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"pip could not install llama-cpp-python: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [path for path in target.rglob("lib*") if ".so" in path.name or path.suffix == ".dylib"]
    return target


@pytest.fixture(scope="session")
def pinned_gguf() -> Any:
    """gguf-py of the patched tree. A test that imports gguf asks for this first, as one process can have but one."""
    llama_cpp.use_pinned_gguf()
    import conversion.base
    import gguf

    recognize = conversion.base.TextModel.get_vocab_base_pre

    def recognize_ours(self: Any, tokenizer: Any) -> str:
        """Upstream knows a BPE tokenizer by the hash of what it makes of a text; the tests train one of their own."""
        try:
            return str(recognize(self, tokenizer))
        except NotImplementedError:
            if FOREIGN in tokenizer.get_vocab():
                raise
            return "qwen2"

    conversion.base.TextModel.get_vocab_base_pre = recognize_ours
    return gguf


@pytest.fixture(scope="session")
def sherry_gguf_file(pinned_gguf: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, converted with the defaults."""
    from sherry_gguf.convert import convert

    return convert(tiny_checkpoint, tmp_path_factory.mktemp("converted") / "tiny.gguf").outfile


# Small models: the arguments of transformers' configuration classes.
_SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 4096}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
_BYTE_LEVEL = ("Qwen3Moe", "HunYuanDenseV1", "HYV4")  # upstream's converter wants byte-level BPE for these
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}


@pytest.fixture(scope="session")
def bpe_tokenizer(heldout_text: Path) -> Any:
    """A byte-level BPE tokenizer of Qwen2's kind, trained on the spot."""
    import transformers

    text = heldout_text.read_text(encoding="utf-8")
    return transformers.Qwen2Tokenizer().train_new_from_iterator([text], _SIZES["vocab_size"])


@pytest.fixture(scope="session")
def random_checkpoint(
    tiny_checkpoint: Path, bpe_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A factory of two-layer models with random latent weights.

    make("Llama", sherry={...}, **configuration): ``sherry`` goes into config.json as the trainer would write it.
    """

    def make(family: str, *, sherry: dict[str, Any] | None = None, shard: str = "1GB", **changes: Any) -> Path:
        import torch
        import transformers

        torch.manual_seed(1)
        settings = {**_SIZES, **_HEADS, **_SPECIAL, **(_EXPERTS if "Moe" in family else {}), **changes}
        config = getattr(transformers, f"{family}Config")(**settings, initializer_range=0.05)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        directory = tmp_path_factory.mktemp(family.lower())
        model.to(torch.bfloat16).save_pretrained(directory, max_shard_size=shard)
        if family in _BYTE_LEVEL:
            bpe_tokenizer.save_pretrained(directory)
        else:
            for name in ("tokenizer.model", "tokenizer_config.json"):
                shutil.copy(tiny_checkpoint / name, directory)
        if sherry is not None:
            path = directory / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **sherry}))
        return directory

    return make


@pytest.fixture(scope="session")
def sherry_config() -> dict[str, Any]:
    """What the published trainer adds to config.json."""
    return {"w_bits": 0, "quant_method": "sherry", "granularity": "per_group", "group_size": 128, "N": 3, "M": 4}
