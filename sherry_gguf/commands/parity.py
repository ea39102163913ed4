"""Compare a GGUF in the patched llama.cpp with its checkpoint in PyTorch: on a text, and weight by weight.

Exit status 0: the Sherry weights and the tokens are equal and every limit holds; 1: not, and a line says which.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from rich.console import Console

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.commands.source_flags import configure_source, source_of
from sherry_gguf.errors import SherryError, Way

# A few times what the shipped checkpoint (5.8 M parameters, Q8_0 embedding) shows on its held-out text: 0.01%, 0.0004
# and 98.2%. Room for other models, yet not for wrong weights: one scale for two blocks already gives 0.016 and 89%.
MAX_PERPLEXITY_CHANGE = 0.5
MAX_KLD = 0.002
MIN_TOP1 = 97.0

WAYS = {**ways_out.SOURCE, **ways_out.GGUF, **ways_out.BUILD, Way.CONTEXT: "take another --ctx-size"}

USAGE = "MODEL FILE --text FILE [FLAG ...]"

EXAMPLES = (
    "sherry-gguf parity model model-SHERRY.gguf --text text.txt",
    "sherry-gguf parity model model-SHERRY.gguf --text text.txt --chunks 4 --no-split",
    "sherry-gguf parity model model-SHERRY.gguf --text text.txt --json parity.json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags are those of llama-perplexity and of the converter where these have them."""
    flags = groups(parser)
    configure_source(flags)
    flags.basic.add_argument("gguf", metavar="FILE", type=Path, help="the file that was made from it")
    flags.basic.add_argument("--text", type=Path, metavar="FILE", required=True, help="UTF-8; best one not trained on")
    flags.checks.add_argument(
        "-c", "--ctx-size", type=_positive, metavar="N", default=512, help="tokens per chunk (%(default)s)"
    )
    flags.checks.add_argument("--chunks", type=_positive, metavar="N", help="chunks at most (default: the whole text)")
    flags.expert.add_argument(
        "-t", "--threads", type=_positive, metavar="N", default=os.cpu_count() or 1, help="default: all processors"
    )
    flags.expert.add_argument(
        "-ngl",
        "--n-gpu-layers",
        type=_positive,
        metavar="N",
        default=0,
        help="layers that llama.cpp computes on a GPU (default: none)",
    )
    flags.expert.add_argument(
        "--no-split",
        action="store_true",
        help="do not separate the sources of error, which takes two more files where TMPDIR says, "
        "the larger one of 4 bytes a weight",
    )
    flags.output.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the figures as JSON; to stdout instead of the table"
    )

    flags.checks.add_argument(
        "--max-ppl-diff",
        type=float,
        metavar="PERCENT",
        default=MAX_PERPLEXITY_CHANGE,
        help="largest change of the perplexity, the file against PyTorch (%(default)s)",
    )
    flags.checks.add_argument(
        "--max-kld", type=float, metavar="NATS", default=MAX_KLD, help="largest mean divergence (%(default)s)"
    )
    flags.checks.add_argument(
        "--min-top1",
        type=float,
        metavar="PERCENT",
        default=MIN_TOP1,
        help="smallest share of tokens on which both agree (%(default)s)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def execute(args: argparse.Namespace) -> int:
    # imported here, as transformers takes seconds that --help need not wait for
    from transformers.utils import logging as transformers_logging

    from sherry_gguf.parity.compare import parity
    from sherry_gguf.parity.findings import Limits

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)  # the conversion has shown its warnings
    findings = parity(
        source_of(args),
        args.gguf,
        args.text,
        Limits(args.max_ppl_diff, args.max_kld, args.min_top1),
        ctx_size=args.ctx_size,
        max_chunks=args.chunks,
        threads=args.threads,
        gpu_layers=args.n_gpu_layers,
        split=not args.no_split,
        progress=sys.stderr.isatty(),
    )
    text = json.dumps(findings.to_json(), indent=2, allow_nan=False)
    if args.json == "-":
        print(text)
        for line in findings.failures():
            print(f"FAILED {line}", file=sys.stderr)
    else:
        if args.json is not None:
            _write(Path(args.json), text)
        findings.show(Console(soft_wrap=True, markup=False, emoji=False))  # names of files are no markup
    return 1 if findings.failures() else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SherryError(f"{path}: cannot be written, {error.strerror}") from error
