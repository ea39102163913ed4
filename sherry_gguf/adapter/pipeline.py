"""A LoRA's whole way: compress it, choose alpha, convert it, store it exactly."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sherry_gguf import llama_cpp
from sherry_gguf.adapter.choice import Scorer, Tensors, perplexities
from sherry_gguf.adapter.compressed import compressed
from sherry_gguf.adapter.lora import WEIGHTS, Lora, open_lora
from sherry_gguf.adapter.stored import Stored, convert_lora, write_exactly
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside

# those of the paper
ALPHAS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Adapter:
    """What was written.

    n_bytes       of the outfile
    lora_bytes    of PEFT's file
    perplexities  alpha -> perplexity on the text; empty where alpha was given
    base, lora    perplexity without the LoRA, and with it as it is; None where alpha was given
    """

    outfile: Path
    stored: Stored
    n_bytes: int
    lora_bytes: int
    density: float
    alpha: float
    perplexities: dict[float, float] = field(default_factory=dict)
    base: float | None = None
    lora: float | None = None


def make_adapter(
    directory: Path,
    outfile: Path,
    *,
    density: float,
    base: Path | None = None,
    alpha: float | None = None,
    texts: Sequence[Path] = (),
    ctx_size: int = 512,
    force: bool = False,
) -> Adapter:
    """Write the LoRA in ``directory`` as a GGUF adapter of sparse ternary tensors, for llama.cpp's --lora.

    density: the share of each tensor's weights that stay, over 0 and up to 1. base: directory of the base model,
    default what the LoRA names. alpha: times the standard deviation is the scale; without one, that of ALPHAS
    with the lowest perplexity on ``texts``. Needs the pinned llama.cpp's source. Raises SherryError, and then leaves
    outfile as it was.
    """
    if not 0 < density <= 1:
        raise SherryError(f"density {density:g} is not above 0 and at most 1")
    if alpha is not None and not alpha > 0:
        raise SherryError(f"alpha {alpha:g} is not above 0")
    if alpha is None and not texts:
        raise SherryError("no text is given that alpha could be chosen on", Way.ALPHA)
    lora = open_lora(directory, base)
    require_free(outfile, force, list(directory.iterdir()))
    llama_cpp.use_pinned_gguf()
    tensors = lora.tensors()
    found: dict[float, float] = {}
    without = whole = None
    if alpha is None:
        scorer = Scorer(lora, texts, ctx_size)
        without, whole = scorer.base(), scorer.of(tensors)
        found = perplexities(scorer, ((a, _compressed(tensors, density, a)) for a in ALPHAS))
        alpha = min(found, key=lambda a: found[a])
    with tempfile.TemporaryDirectory() as folder, temporary_beside(outfile) as temporary:
        stored = _write(lora, dict(_compressed(tensors, density, alpha)), Path(folder), temporary)
        rename_durably(temporary, outfile, force)
    sizes = outfile.stat().st_size, (directory / WEIGHTS).stat().st_size
    return Adapter(outfile, stored, *sizes, density, alpha, found, without, whole)


def _compressed(tensors: Tensors, density: float, alpha: float) -> Tensors:
    return {name: torch.from_numpy(compressed(w.numpy(), density, alpha)) for name, w in tensors.items()}


def _write(lora: Lora, tensors: dict[str, torch.Tensor], folder: Path, outfile: Path) -> Stored:
    converted = folder / "f32.gguf"
    convert_lora(lora, lora.copy(folder, tensors), converted)
    return write_exactly(converted, outfile)
