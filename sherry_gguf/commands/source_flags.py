"""How a checkpoint is read, as flags: one group for every command that reads one, so that all read it alike."""

from __future__ import annotations

import argparse
from pathlib import Path

from sherry_gguf.checkpoint import Source
from sherry_gguf.checkpoint.declared import check_regex
from sherry_gguf.checkpoint.hub import fetched
from sherry_gguf.commands.help_page import Groups
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import GRIDS, STRIDE
from sherry_gguf.weights.granularity import DEFAULT_GROUP_SIZE, SHARINGS, Granularity, parse_granularity
from sherry_gguf.weights.ternary import DECLARABLE


def configure_source(flags: Groups) -> None:
    """Declare the model and the flags that say how it is read."""
    basic, expert = flags.basic, flags.expert
    basic.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="directory of the checkpoint, a torch state dict (with --config), or its id on the Hugging Face Hub",
    )
    basic.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hub")
    basic.add_argument(
        "--config", type=Path, metavar="DIR", help="where config.json and the tokenizer are, if elsewhere"
    )
    basic.add_argument(
        "--granularity",
        metavar="SHARING",
        choices=SHARINGS,
        help="which weights share a scale, if config.json does not say so: %(choices)s",
    )
    basic.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help=f"weights per scale for per_group (default {DEFAULT_GROUP_SIZE['consecutive']}, "
        f"{DEFAULT_GROUP_SIZE['stride16']} with stride16)",
    )
    expert.add_argument(
        "--grid",
        metavar="GRID",
        choices=GRIDS,
        help=f"which weights have one zero in every 4, of latent ones: {GRIDS[0]} (default), 4 neighbours as Sherry "
        f"was published, or {GRIDS[1]}, {STRIDE} apart as in STQ1_0; that of baked weights is seen",
    )
    expert.add_argument(
        "--method",
        metavar="METHOD",
        choices=DECLARABLE,
        help="how dense ternary weights, which are not Sherry's, come about: they are such already (ternary), or they "
        "are latents of the method named: %(choices)s",
    )
    expert.add_argument(
        "--sherry-layers",
        metavar="REGEX",
        help="names of the quantized layers in the checkpoint (default: the decoder's linear layers)",
    )
    expert.add_argument(
        "--allow-lossy",
        action="store_true",
        help="quantize a model that is not Sherry, which changes its weights: convert says how much, "
        "parity compares with the quantized model",
    )
    expert.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="execute Python files of the model where transformers needs them; read them before",
    )


def source_of(args: argparse.Namespace) -> Source:
    """What the flags say; SherryError for flags that contradict each other or are no regular expression."""
    layers = None if args.sherry_layers is None else check_regex(args.sherry_layers)
    return Source(
        fetched(args.model, args.revision, code=args.trust_remote_code),
        args.config,
        _granularity_of(args),
        layers,
        args.grid,
        args.allow_lossy,
        args.trust_remote_code,
        args.method,
    )


def _granularity_of(args: argparse.Namespace) -> Granularity | None:
    if args.granularity is None and args.group_size is None:
        return None
    if args.granularity in (None, "per_group"):
        default = DEFAULT_GROUP_SIZE[args.grid or GRIDS[0]]
        return parse_granularity("per_group", default if args.group_size is None else args.group_size)
    if args.group_size is not None:
        raise SherryError(f"--group-size belongs to per_group, not to {args.granularity}")
    return parse_granularity(args.granularity)
