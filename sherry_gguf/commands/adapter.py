"""Make a GGUF adapter of a PEFT LoRA, for llama.cpp's --lora: of each tensor the largest weights stay, with a sign and
one scale for all (ComPEFT). The scale is alpha standard deviations; alpha is chosen on a text that the LoRA was not
trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sherry_gguf.adapter import ALPHAS, Adapter, make_adapter
from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.errors import Way

WAYS = {
    **ways_out.SOURCE,
    **ways_out.OUTFILE,
    Way.CONTEXT: "take another --ctx-size",
    Way.BASE: "name its directory (--base DIR)",
    Way.ALPHA: "name one (--eval-data FILE), or say what alpha is (--alpha X)",
}

USAGE = "LORA_DIR --outfile FILE --eval-data TEXT ... [FLAG ...]"

EXAMPLES = (
    "sherry-gguf adapter lora --density 0.2 --outfile adapter.gguf --eval-data text.txt",
    "sherry-gguf adapter lora --base model --outfile adapter.gguf --eval-data text.txt",
    "sherry-gguf adapter lora --base model --outfile adapter.gguf --alpha 2",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    flags = groups(parser)
    flags.basic.add_argument("lora", metavar="LORA_DIR", type=Path, help="a LoRA, as PEFT saves it")
    flags.basic.add_argument(
        "--density", metavar="X", type=float, default=0.2, help="share of the weights that stay (default %(default)s)"
    )
    flags.basic.add_argument(
        "--eval-data", metavar="FILE", type=Path, nargs="+", default=[], help="texts, .txt, to choose alpha on"
    )
    flags.basic.add_argument("--base", metavar="DIR", type=Path, help="the base model (default: what the LoRA names)")
    flags.output.add_argument("--outfile", metavar="FILE", type=Path, required=True, help="the adapter")
    flags.output.add_argument("--force", action="store_true", help="replace an existing outfile")
    flags.expert.add_argument(
        "--alpha",
        metavar="X",
        type=float,
        help=f"take this one, and measure nothing (default: the best of {', '.join(f'{a:g}' for a in ALPHAS)})",
    )
    flags.expert.add_argument(
        "--ctx-size", metavar="N", type=int, default=512, help="tokens in a chunk of a text (default %(default)s)"
    )


def execute(args: argparse.Namespace) -> int:
    made = make_adapter(
        args.lora,
        args.outfile,
        density=args.density,
        base=args.base,
        alpha=args.alpha,
        texts=args.eval_data,
        ctx_size=args.ctx_size,
        force=args.force,
    )
    print(_told(made))
    return 0


def _told(made: Adapter) -> str:
    stored = made.stored
    types = ", ".join(f"{count} {name}" for name, count in stored.types.items())
    lines = [
        f"wrote {made.outfile}: {made.n_bytes:,} bytes, of which {stored.n_bytes:,} are {stored.weights:,} weights "
        f"({8 * stored.n_bytes / stored.weights:.2f} bits each; {types}); PEFT's file has {made.lora_bytes:,}",
        f"density {made.density:g}, alpha {made.alpha:g}",
    ]
    if made.base is not None and made.lora is not None:
        tried = ", ".join(f"{alpha:g}: {value:.2f}" for alpha, value in made.perplexities.items())
        best = made.perplexities[made.alpha]
        lines.append(f"perplexity: base {made.base:.4f}, LoRA {made.lora:.4f}, this adapter {best:.4f} ({tried})")
    return "\n".join(lines)
