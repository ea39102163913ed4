"""A model card for a converted file: where it is from, what was verified, how large it is, how to run it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sherry_gguf import __version__
from sherry_gguf.checkpoint import Source
from sherry_gguf.convert.guards import inputs_of
from sherry_gguf.convert.naming import directory_for
from sherry_gguf.convert.summary import Conversion, as_json
from sherry_gguf.errors import SherryError
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.llama_cpp.upstream import PatchSet

_CARD = "README.md"
_PART = r"-\d{5}-of-\d{5}$"


def card_beside(source: Source, outfile: Path | None, force: bool) -> Path:
    """Where the card of this conversion goes; SherryError where it may not be written, before any work is done."""
    place = outfile or directory_for(source.model)
    folder = place if place.is_dir() else place.parent
    require_free(folder / _CARD, force, inputs_of(source, None))
    return folder / _CARD


def read_parity(path: Path) -> dict[str, Any]:
    """The figures that parity wrote as JSON; SherryError for another file."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        figures = figures if {"total", "text", "ok"} <= set(figures) else None
    except (OSError, ValueError, TypeError) as error:
        raise SherryError(f"{path}: cannot be read as JSON, {error}") from error
    if figures is None:
        raise SherryError(f"{path}: has no figures of parity")
    found: dict[str, Any] = figures
    return found


def write_card(path: Path, text: str, force: bool) -> None:
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        rename_durably(temporary, path, force)


def card(conversion: Conversion, model: str, revision: str | None, parity: Mapping[str, Any] | None = None) -> str:
    """Markdown with the front matter of the Hub. model: as the user named it; the files are there and are hashed."""
    patches, sizes, first = PatchSet.load(), as_json(conversion), conversion.outfile.name
    is_id = not Path(model).exists()
    lines = ["---", "library_name: gguf", "tags: [gguf, llama.cpp, ternary, sherry]"]
    lines += [f"base_model: {model}"] if is_id else []
    lines += [
        "---",
        "",
        f"# {re.sub(_PART, '', conversion.outfile.stem)}",
        "",
        f"Converted from `{model if is_id else Path(model).resolve().name}`"
        f"{f' at revision `{revision}`' if revision else ''} by sherry-gguf {__version__}, with the llama.cpp of "
        f"{patches.pin} (patch {patches.digest()[:12]}).",
        "",
        f"- Source: {conversion.source}",
        f"- Check: {sizes['verdict'] or 'not verified'}",
        f"- llama.cpp: {'loads it' if conversion.loaded else 'was not asked to load it'}",
        *(f"- {note}" for note in conversion.notes),
        "",
        "## Sizes",
        "| type | tensors | weights | bits per weight | bytes |",
        "|---|---|---|---|---|",
    ]
    rows = [*sizes["types"].items(), ("all", sizes)]
    lines += [
        f"| {name} | {row['tensors']} | {row['weights']:,} | {row['bits_per_weight']:.4g} | {row['bytes']:,} |"
        for name, row in rows
    ]
    lines += ["", "| file | bytes | SHA-256 |", "|---|---|---|"]
    lines += [f"| {file.name} | {file.stat().st_size:,} | {_sha256(file)} |" for file in conversion.files]
    if conversion.losses:
        lines += ["", "## Changed weights", "| layer | \\|w_q - w\\| / \\|w\\| |", "|---|---|"]
        lines += [f"| {name} | {error:.3f} |" for name, error in conversion.losses.items()]
    if parity is not None:
        lines += ["", *_parity(parity)]
    lines += [
        "",
        "## Run it",
        "```sh",
        "sherry-gguf build --target llama-cli",
        f'$(sherry-gguf which llama-cli) -m {first} -p "Hello" -n 64 --single-turn',
        f"$(sherry-gguf which llama-server) -m {first}",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _parity(figures: Mapping[str, Any]) -> list[str]:
    total = figures["total"]
    return [
        "## Against PyTorch",
        f"{'Every limit holds' if figures['ok'] else 'FAILED'}, on {Path(str(figures['text'])).name}, "
        f"{figures['chunks']} chunks of {figures['ctx_size']} tokens, file {Path(str(figures['gguf'])).name}.",
        "",
        "| perplexity in PyTorch | in llama.cpp | mean KL divergence | same top token |",
        "|---|---|---|---|",
        f"| {total['base_perplexity']:.4f} | {total['other_perplexity']:.4f} | {total['kld_mean']:.2g} | "
        f"{100 * total['same_top1']:.2f}% |",
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
