"""Convert a trained Sherry checkpoint to a GGUF file for the patched llama.cpp, and check that nothing was lost."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from pathlib import Path

from rich.console import Console

from sherry_gguf.checkpoint import check_regex, parse_granularity
from sherry_gguf.convert.pipeline import convert
from sherry_gguf.convert.plan import DEFAULT_GROUP_SIZE
from sherry_gguf.convert.report import print_report
from sherry_gguf.convert.types import (
    AUTO,
    DEFAULT_EMBEDDING_TYPE,
    DEFAULT_OUTTYPE,
    LIBRARY_TYPES,
    NUMPY_TYPES,
    OUTTYPES,
    TypeChoice,
    parse_outtype,
    parse_override,
    parse_type,
)
from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK
from sherry_gguf.groups import GROUPS, STRIDE
from sherry_gguf.quantize import Granularity

_TYPES = (
    f"TYPE is one of {', '.join((*NUMPY_TYPES, *LIBRARY_TYPES))}, but for --outtype; "
    f"the last {len(LIBRARY_TYPES)} need `sherry-gguf build`"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags are those of llama.cpp's convert_hf_to_gguf.py and llama-quantize where these have them."""
    parser.add_argument("model", type=Path, help="directory of the checkpoint, or a torch state dict (with --config)")
    parser.add_argument("--outfile", type=Path, help="default: in the model's directory, named after the model")
    configure_source(parser)

    types = parser.add_argument_group("types of tensors", description=_TYPES)
    types.add_argument(
        "--outtype",
        metavar="TYPE",
        default=DEFAULT_OUTTYPE,
        help=f"of the Sherry layers, exact or refused: {', '.join(OUTTYPES[:-1])}, or {AUTO}, which takes for each "
        f"tensor the smallest that is exact (default %(default)s; all but it and stq1_0 need no patched llama.cpp)",
    )
    types.add_argument("--token-embedding-type", metavar="TYPE", help=f"default {DEFAULT_EMBEDDING_TYPE}")
    types.add_argument(
        "--output-tensor-type",
        metavar="TYPE",
        help=f"default {DEFAULT_EMBEDDING_TYPE}; tied embeddings are written twice if this differs",
    )
    types.add_argument(
        "--tensor-type", metavar="REGEX=TYPE", action="append", default=[], help="by GGUF name; changes the type only"
    )

    out = parser.add_argument_group("output")
    out.add_argument("--model-name", help="general.name in the file")
    out.add_argument("--metadata", type=Path, help="JSON file that overrides authorship metadata")
    out.add_argument("--force", action="store_true", help="replace an existing outfile")
    out.add_argument("--no-verify", action="store_true", help="do not read the file back and compare it")
    out.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    out.add_argument(
        "--verbose", action="store_true", help="show what llama.cpp's converter says, and where an error came from"
    )


def configure_source(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is read: for every command that reads one, so that all read it alike."""
    source = parser.add_argument_group("how the checkpoint is read (default: config.json, or off baked weights)")
    source.add_argument(
        "--config", type=Path, metavar="DIR", help="where config.json and the tokenizer are, if elsewhere"
    )
    source.add_argument(
        "--granularity", choices=("per_group", "per_channel", "per_tensor"), help="which weights share a scale"
    )
    source.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help=f"weights per scale for per_group (default {BLOCK}, {DEFAULT_GROUP_SIZE['stride16']} with stride16)",
    )
    source.add_argument(
        "--grid",
        choices=GROUPS,
        help=f"which weights have one zero in every 4, of latent ones: 4 neighbours as Sherry was published, or "
        f"{STRIDE} apart as in STQ1_0 (default {GROUPS[0]}; that of baked weights is seen)",
    )
    source.add_argument(
        "--sherry-layers",
        metavar="REGEX",
        help="names of the quantized layers in the checkpoint (default: the decoder's linear layers)",
    )
    source.add_argument(
        "--allow-lossy",
        action="store_true",
        help="quantize a model that is not Sherry, which changes its weights: convert says how much, "
        "parity compares with the quantized model",
    )


def granularity_of(args: argparse.Namespace) -> Granularity | None:
    """What ``configure_source``'s flags declare, None if nothing; SherryError for flags that contradict each other."""
    if args.granularity is None and args.group_size is None:
        return None
    if args.granularity in (None, "per_group"):
        default = DEFAULT_GROUP_SIZE[args.grid or GROUPS[0]]
        return parse_granularity("per_group", default if args.group_size is None else args.group_size)
    if args.group_size is not None:
        raise SherryError(f"--group-size belongs to per_group, not to {args.granularity}")
    return parse_granularity(args.granularity)


def layers_of(args: argparse.Namespace) -> str | None:
    """``--sherry-layers``; SherryError if it is no regular expression."""
    return None if args.sherry_layers is None else check_regex(args.sherry_layers)


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="llama.cpp's converter: %(message)s"
    )
    try:
        report = convert(
            args.model,
            args.outfile,
            config_dir=args.config,
            granularity=granularity_of(args),
            sherry_layers=layers_of(args),
            allow_lossy=args.allow_lossy,
            groups=args.grid,
            types=TypeChoice(
                args.token_embedding_type and parse_type(args.token_embedding_type),
                args.output_tensor_type and parse_type(args.output_tensor_type),
                tuple(parse_override(text) for text in args.tensor_type),
                parse_outtype(args.outtype),
            ),
            model_name=args.model_name,
            metadata=args.metadata,
            force=args.force,
            verify=not args.no_verify,
            dry_run=args.dry_run,
            progress=sys.stderr.isatty(),
        )
    except SherryError:
        if args.verbose:
            traceback.print_exc()
        raise
    console = Console(soft_wrap=True, markup=False, emoji=False)  # names of files are no markup
    print_report(report, console)
    console.print("dry run: nothing written" if args.dry_run else f"wrote {report.outfile}", highlight=False)
    if not args.dry_run:
        console.print(str(report.verdict or "not verified (--no-verify)"), highlight=False)
    return 0
