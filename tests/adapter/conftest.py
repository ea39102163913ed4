"""LoRAs trained for a few steps on Sherry models, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CONTEXT, STEPS = 128, 6


@pytest.fixture(scope="session")
def sherry_model() -> Callable[[Path], Any]:
    """make(directory): the checkpoint's model in float32, as it was trained."""
    from sherry_gguf.checkpoint import Checkpoint
    from sherry_gguf.convert.plan import make_plan
    from sherry_gguf.parity.reference import open_trained

    def make(directory: Path) -> Any:
        checkpoint = Checkpoint(directory)
        return open_trained(checkpoint, make_plan(checkpoint))

    return make


@pytest.fixture(scope="session")
def make_lora(
    sherry_model: Callable[[Path], Any], heldout_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """make(base, rank, rate): a LoRA of all linear layers, trained on the beginning of the held-out text."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    def make(base: Path, rank: int = 32, rate: float = 1e-3) -> Path:
        torch.manual_seed(1)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(sherry_model(base), config).train()
        text = heldout_text.read_text(encoding="utf-8")[:20000]
        tokens = torch.tensor(AutoTokenizer.from_pretrained(base)(text)["input_ids"][: STEPS * 4 * CONTEXT])
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
        for batch in tokens.reshape(STEPS, 4, CONTEXT):
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.peft_config["default"].base_model_name_or_path = str(base)
        directory = tmp_path_factory.mktemp("adapters") / "lora"
        model.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def lora(make_lora: Callable[..., Path], tiny_checkpoint: Path) -> Path:
    return make_lora(tiny_checkpoint)
