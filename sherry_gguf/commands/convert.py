"""Convert a trained Sherry checkpoint to a GGUF file for the patched llama.cpp, and check that nothing was lost."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging as transformers_log

from sherry_gguf.checkpoint import Source
from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.commands.source_flags import configure_source, source_of
from sherry_gguf.convert.calibrated import Calibration
from sherry_gguf.convert.card import card, card_beside, read_parity, write_card
from sherry_gguf.convert.parts import parse_size
from sherry_gguf.convert.pipeline import convert
from sherry_gguf.convert.summary import Conversion, as_json, print_conversion
from sherry_gguf.convert.type_choice import (
    AUTO,
    DEFAULT_DENSE_TYPE,
    DEFAULT_EMBEDDING_TYPE,
    DEFAULT_TYPES,
    LIBRARY_TYPES,
    NUMPY_TYPES,
    TypeChoice,
    outtypes,
    parse_outtype,
    parse_override,
    parse_type,
)
from sherry_gguf.convert.vocab_only import VocabularyFile, convert_vocabulary
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.table import tensor_types
from sherry_gguf.threads import threads
from sherry_gguf.weights.channel_order import EXACT

_TYPES = f"{', '.join((*NUMPY_TYPES, *LIBRARY_TYPES))}; the last {len(LIBRARY_TYPES)} need `sherry-gguf build`"

USAGE = "MODEL [FLAG ...]"

EXAMPLES = (
    "sherry-gguf convert model",
    "sherry-gguf convert model --outfile model-SHERRY.gguf --force",
    "sherry-gguf convert model --granularity per_group --group-size 128 --dry-run",
)

_MOST_WARNINGS = 1000  # kept until it is known whether the conversion is refused

WAYS = {
    **ways_out.SOURCE,
    **ways_out.OUTFILE,
    **ways_out.BUILD,
    Way.ALL_FIT: "--outtype {0} holds all",
    Way.AUTO: "--outtype auto takes for each the smallest type that holds it",
    Way.REST_AS: "--tensor-type '{0}={1}' stores the others",
    Way.OTHER_TYPE: "choose another type for it (--tensor-type REGEX=f16)",
    Way.EMBEDDING_TYPE: "choose another type for it (--token-embedding-type f16)",
    Way.OUTPUT_TYPE: "choose another type for it (--output-tensor-type f16)",
    Way.KEEP_SCALES: "rescale the layer, or store its tensor in F32 (--tensor-type REGEX=f32, by its GGUF name)",
    Way.REGRID: "--regrid exact makes them fit",
    Way.NO_REGRID: "leave out --regrid",
    Way.AUTO_NO_REGRID: "--outtype auto without --regrid takes for each tensor the smallest type that holds it",
    Way.REGRID_TYPE: "give --outtype {0}",
    Way.CALIBRATE: "--outtype sherry_2p --calibrate TEXT changes a plain model to two planes, at 2.75 bits a weight",
    Way.NO_CALIBRATION: "leave out --calibrate",
    Way.WHERE: "--verbose shows where",
    Way.UNVERIFIED: "--no-verify writes it all the same",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags are those of llama.cpp's convert_hf_to_gguf.py and llama-quantize where these have them."""
    flags = groups(parser)
    basic, output, checks, expert = flags.basic, flags.output, flags.checks, flags.expert
    configure_source(flags)
    basic.add_argument(
        "--outtype",
        metavar="TYPE",
        help=f"of the Sherry layers, exact or refused: {', '.join(outtypes()[:-1])}, or {AUTO}, which takes for each "
        f"tensor the smallest that is exact (default: {', else '.join(t.outtype for t in DEFAULT_TYPES)}; "
        f"{', '.join(t.outtype for t in tensor_types() if t.is_stock)} need no patched llama.cpp; of dense ternary "
        f"layers {DEFAULT_DENSE_TYPE.outtype})",
    )
    expert.add_argument(
        "--regrid",
        choices=(EXACT,),
        help="for stq1_0: reorder the channels of a Llama, Qwen2 or Qwen3 that has a scale per row or matrix, so that "
        "groups of consecutive weights are that type's; no weight changes, and the model computes the same",
    )
    basic.add_argument(
        "--calibrate",
        metavar="TEXT",
        type=Path,
        help="for a model that was not trained as Sherry, with --outtype sherry_2p: change its weights to those that "
        "come nearest on this text, some 100 kB of what the model will read and write",
    )
    basic.add_argument(
        "--bpw",
        metavar="BITS",
        type=float,
        help="with --calibrate: bits a weight of the calibrated matrices in the mean, such as 3; those that lose most "
        "get a stock type, and keep the checkpoint's weights as near as that can",
    )
    expert.add_argument(
        "--calibrate-tokens",
        metavar="N",
        type=int,
        help=f"how many tokens of the text are used (default {Calibration.tokens})",
    )
    expert.add_argument(
        "--memory",
        metavar="GB",
        type=float,
        help=f"for activations, the rest goes to disk (default {Calibration.memory:g})",
    )
    expert.add_argument("--seed", metavar="N", type=int, help="which windows of the text are used (default 0)")
    expert.add_argument(
        "--jobs", metavar="N", type=int, help="threads; the file is the same (default: the processors, 8 at most)"
    )
    expert.add_argument("--token-embedding-type", metavar="TYPE", help=f"{_TYPES} (default {DEFAULT_EMBEDDING_TYPE})")
    expert.add_argument(
        "--output-tensor-type",
        metavar="TYPE",
        help=f"the same (default {DEFAULT_EMBEDDING_TYPE}); tied embeddings are written twice if this differs; with "
        "--calibrate also the --outtype, if the model has an output of its own",
    )
    expert.add_argument(
        "--tensor-type",
        metavar="REGEX=TYPE",
        action="append",
        default=[],
        help="the same, of tensors by their names in the file; changes the type only",
    )

    output.add_argument(
        "--outfile", metavar="FILE", type=Path, help="default: in the model's directory, named after the model"
    )
    output.add_argument("--force", action="store_true", help="replace an existing outfile")
    output.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    output.add_argument("--model-name", metavar="NAME", help="general.name in the file")
    output.add_argument(
        "--metadata",
        metavar="FILE",
        type=Path,
        help="JSON file whose entries (general.author, general.license.name, ..) win over what the model's folder says",
    )
    output.add_argument(
        "--split-max-size",
        metavar="N(K|M|G)",
        help="at most this many bytes of tensors in a file; a larger model becomes several, of which llama.cpp is "
        "given the first",
    )
    output.add_argument(
        "--vocab-only", action="store_true", help="write the tokenizer and the parameters, and no weights"
    )
    output.add_argument(
        "--json", action="store_true", help="print one JSON object: files, verdict, sizes, types, notes, seconds"
    )
    output.add_argument(
        "--card",
        action="store_true",
        help="write a model card, README.md beside the file: where it is from, verdict, sizes, how to run it",
    )
    output.add_argument(
        "--parity", metavar="FILE", type=Path, help="what `sherry-gguf parity --json FILE` wrote, for the card"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")

    checks.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare the file with the checkpoint, nor let llama.cpp load it",
    )
    checks.add_argument(
        "--verbose", action="store_true", help="show what llama.cpp's converter says, and where an error came from"
    )


def execute(args: argparse.Namespace) -> int:
    start = time.monotonic()
    try:
        if args.jobs is not None and args.jobs < 1:
            raise SherryError("--jobs is a number from 1 on")
        with _upstream_log(args.verbose, args.quiet), threads(args.jobs):
            source = source_of(args)
            written = _convert_vocabulary(args, source) if args.vocab_only else _convert_weights(args, source)
    except SherryError:
        if args.verbose:
            traceback.print_exc()
        raise
    if args.json:
        print(json.dumps({**_fields(written, args.dry_run), "seconds": round(time.monotonic() - start, 3)}, indent=1))
    elif not args.quiet:
        _show(written, args.dry_run)
    return 0


def _fields(written: Conversion | VocabularyFile, dry_run: bool) -> dict[str, Any]:
    if isinstance(written, VocabularyFile):
        return {"output": str(written.outfile), "files": [str(written.outfile)], "tokens": written.tokens}
    return {**as_json(written), "dry_run": dry_run}


def _show(written: Conversion | VocabularyFile, dry_run: bool) -> None:
    console = Console(soft_wrap=True, markup=False, emoji=False)  # names of files are no markup
    if isinstance(written, VocabularyFile):
        console.print(f"wrote {written.outfile}\n{written.tokens:,} tokens, no weights", highlight=False)
        return
    print_conversion(written, console)
    for file in written.files:
        console.print(f"would write {file}" if dry_run else f"wrote {file}", highlight=False)
    console.print("dry run: nothing written" if dry_run else _verdict(written), highlight=False)


def _verdict(conversion: Conversion) -> str:
    if conversion.verdict is None:
        return "not verified (--no-verify)"
    loaded = "llama.cpp loads it" if conversion.loaded else "not tried to load it, for that run `sherry-gguf build`"
    return f"{conversion.verdict}; {loaded}"


@contextmanager
def _upstream_log(verbose: bool, quiet: bool) -> Iterator[None]:
    """What llama.cpp's converter logs goes to stderr: all at once and verbosely, or the warnings where it succeeds.

    Before a refusal warnings would hide its one line. quiet: nor where it succeeds.
    """
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter("llama.cpp's converter: %(message)s"))
    never = logging.CRITICAL + 1
    kept = MemoryHandler(_MOST_WARNINGS, never, to_stderr)
    level, handler = (logging.INFO, to_stderr) if verbose else (logging.WARNING, kept)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if not verbose:
        transformers_log.set_verbosity_error()
    try:
        yield
    except BaseException:
        kept.buffer.clear()  # before the end of the process, which writes what is kept
        raise
    if quiet:
        kept.buffer.clear()
    kept.flush()


def _calibration_of(args: argparse.Namespace) -> Calibration | None:
    """What the flags say. Warns of one plane before the hours that it takes."""
    given = {
        name: value
        for name, value in (
            ("tokens", args.calibrate_tokens),
            ("memory", args.memory),
            ("seed", args.seed),
            ("bits", args.bpw),
        )
        if value is not None
    }
    if args.calibrate is None:
        if given:
            raise SherryError("--calibrate-tokens, --memory, --seed and --bpw belong to --calibrate")
        return None
    if not all(value >= 0 for value in given.values()) or given.get("tokens") == 0:
        raise SherryError(
            "--calibrate-tokens, --memory, --seed and --bpw are no negative numbers, and some tokens are needed"
        )
    if args.outtype and parse_outtype(args.outtype) == SHERRY.outtype:
        print(
            "warning: one plane is for models that are trained as Sherry, and of others it leaves little; "
            "--outtype sherry_2p keeps far more",
            file=sys.stderr,
        )
    return Calibration(args.calibrate, **given)


def _convert_weights(args: argparse.Namespace, source: Source) -> Conversion:
    if args.parity is not None and not args.card:
        raise SherryError("--parity belongs to --card")
    if not args.card or args.dry_run:
        return _convert(args, source)
    beside = card_beside(source, args.outfile, args.force)
    parity = None if args.parity is None else read_parity(args.parity)
    conversion = _convert(args, source)
    write_card(beside, card(conversion, str(args.model), args.revision, parity), args.force)
    return conversion


def _convert(args: argparse.Namespace, source: Source) -> Conversion:
    return convert(
        source,
        args.outfile,
        types=_types_of(args),
        regrid=args.regrid,
        calibration=_calibration_of(args),
        model_name=args.model_name,
        metadata=args.metadata,
        part_bytes=parse_size(args.split_max_size) if args.split_max_size else 0,
        force=args.force,
        verify=not args.no_verify,
        dry_run=args.dry_run,
        progress=sys.stderr.isatty() and not args.quiet,
    )


def _types_of(args: argparse.Namespace) -> TypeChoice:
    outtype = args.outtype and parse_outtype(args.outtype)
    # the head can be calibrated like the layers
    head = bool(args.calibrate and outtype and (args.output_tensor_type or "").lower() == outtype)
    return TypeChoice(
        args.token_embedding_type and parse_type(args.token_embedding_type),
        parse_type(args.output_tensor_type) if args.output_tensor_type and not head else None,
        tuple(parse_override(text) for text in args.tensor_type),
        outtype,
        head=head,
    )


def _convert_vocabulary(args: argparse.Namespace, source: Source) -> VocabularyFile:
    if args.dry_run or args.split_max_size or args.card:
        raise SherryError("--vocab-only writes one small file, without --dry-run, --split-max-size and --card")
    return convert_vocabulary(
        source, args.outfile, model_name=args.model_name, metadata=args.metadata, force=args.force
    )
