"""The checkpoint in PyTorch, the GGUF in the runtime, and the files between them.

Causes of difference are let in one after another, and each stage is compared with PyTorch:

    scales in fp16        the F32 twin with an F32 KV cache: alpha rounded, and another order of float sums
    + F16 KV cache        the F32 twin as users run it: llama.cpp's default cache and flash attention
    + 8-bit activations   SHERRY with F32 embeddings and output; layers that the file has in another type have it
    + other types         the file: the types of embedding, output, and what else is no Sherry layer

The F32 twin is the same checkpoint with the weights that SHERRY's blocks give back, every tensor stored as F32.
Stages are not compared with each other: any change before rounded activations rolls their noise anew, so that two
such files differ by that noise twice, although both are equally near to PyTorch.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Source
from sherry_gguf.checkpoint.remote_code import remote_code
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import is_regridded, regridded
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.parity import reference, runtime, scoring, weights
from sherry_gguf.parity.calibrated import is_calibrated, read_chosen
from sherry_gguf.parity.findings import Findings, Limits, Step, TokenCheck
from sherry_gguf.weights import channel_order
from sherry_gguf.weights.compare import WeightCheck

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Stage:
    """A file in the runtime; ``cause`` is what it has and the stage before has not."""

    cause: str
    file: Path
    options: tuple[str, ...] = ()


def parity(
    source: Source,
    gguf: Path,
    text: Path,
    limits: Limits,
    *,
    ctx_size: int = 512,
    max_chunks: int | None = None,
    threads: int = 1,
    gpu_layers: int = 0,
    split: bool = True,
    progress: bool = False,
) -> Findings:
    """Compare ``gguf`` with the checkpoint it was made from, on a text in UTF-8.

    Of a calibrated file PyTorch gets the very weights of its Sherry layers: what is compared is the runtime, and not
    what calibration changed. The F32 twin then is the file itself, dequantized with its embedding and output.

    ctx_size   tokens per chunk, each evaluated by itself; the second half of each is scored
    gpu_layers how many layers llama.cpp computes on a GPU, if it was built for one
    split      let the causes in one by one, which takes two more files in the temporary directory: one of 4 bytes
               a weight, and ``gguf`` with F32 embeddings

    Needs a build of llama.cpp. Memory: the model in fp32 twice while PyTorch loads it, which is over before
    llama.cpp starts; then once beside the files as llama.cpp holds them, of which the one in F32 is as large again.
    """
    if ctx_size < 3:
        raise SherryError(
            f"a context of {ctx_size} tokens predicts nothing in its second half: 3 are the least", Way.CONTEXT
        )
    build = llama_cpp.find_build()
    llama_cpp.use_pinned_gguf()
    if not gguf.is_file():
        raise SherryError(f"{gguf}: no such file")
    open_gguf(gguf).require_whole()
    checkpoint = source.open()
    with remote_code(source.trust_remote_code):
        chosen = read_chosen(gguf, checkpoint, source) if is_calibrated(gguf) else None
        plan = chosen.plan if chosen else make_plan(checkpoint, source)
    if is_regridded(gguf):
        plan = regridded(plan, checkpoint)
    tokens = reference.tokenize(checkpoint, _read(text))
    chunks = scoring.cut(tokens.tokens, ctx_size, tokens.bos, max_chunks)
    if len(chunks) == 0:
        raise SherryError(f"{text}: {len(tokens.tokens)} tokens are less than one chunk of {ctx_size}", Way.CONTEXT)

    token_check = TokenCheck.of(tokens.tokens, runtime.tokenize(build.program("llama-tokenize"), gguf, text))
    with remote_code(source.trust_remote_code):
        weight_check = weights.check(gguf, checkpoint, plan) if chosen is None else WeightCheck()
        kept = weights.other_types(gguf, checkpoint, plan) if split and chosen is None else ()
    first = scoring.first_scored(ctx_size)
    on_gpu = ("-ngl", str(gpu_layers)) if gpu_layers else ()
    in_torch = reference.load(checkpoint, plan, chosen=chosen.weights if chosen else None, threads=threads)
    with ExitStack() as stack:
        if split and chosen:
            stages = stack.enter_context(_stages_of_one_file(build, gguf))
        else:
            stages = stack.enter_context(_stages(source, gguf, kept, split, bool(plan.moved)))
        program = build.program("sherry-logits")
        in_runtime = [
            stack.enter_context(
                runtime.open_logits(
                    program, stage.file, ctx_size, first, threads=threads, options=(*stage.options, *on_gpu)
                )
            )
            for stage in stages
        ]
        meters = [scoring.Meter() for _ in stages]
        console = Console(stderr=True)
        for chunk in track(chunks, "Comparing", console=console, disable=not progress, transient=True):
            base = in_torch(chunk)[first:]
            for meter, logits in zip(meters, in_runtime, strict=True):
                _add(meter, base, logits(chunk), chunk[first + 1 :])
    return Findings(
        model=str(source.model),
        gguf=str(gguf),
        text=str(text),
        ctx_size=ctx_size,
        chunks=len(chunks),
        weights=weight_check,
        tokens=token_check,
        steps=tuple(Step(stage.cause, meter.result()) for stage, meter in zip(stages, meters, strict=True)),
        limits=limits,
        lossy_layers=sum(layer.source == "lossy" for layer in plan.layers.values()),
        calibrated=chosen.changes if chosen else None,
    )


def _read(text: Path) -> str:
    try:
        # bytes, as the runtime reads them: text mode would rewrite line ends
        return text.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SherryError(f"{text}: cannot be read as UTF-8 text, {error}") from error


@contextmanager
def _stages(
    source: Source, gguf: Path, kept: tuple[tuple[str, str], ...], split: bool, regrid: bool
) -> Generator[list[_Stage], None, None]:
    """The files on the way to ``gguf``; those made here are removed at the end.

    kept: overrides for Sherry layers that are not SHERRY in ``gguf``, and need not fit it
    regrid: the channels of ``gguf`` are in another order, and so are theirs
    """
    if not split:
        yield [_Stage("all causes", gguf)]
        return
    with tempfile.TemporaryDirectory(prefix="sherry-parity-") as directory:
        twin, plain = Path(directory, "f32.gguf"), Path(directory, "sherry.gguf")
        _convert(source, twin, TypeChoice(overrides=((".*", "f32"),)), regrid)
        _convert(source, plain, TypeChoice(token_embedding="f32", output="f32", overrides=kept), regrid)
        yield [
            _Stage("scales in fp16", twin, ("--kv-f32",)),
            _Stage("F16 KV cache", twin),
            _Stage("8-bit activations", plain),
            _Stage("other types", gguf),
        ]


@contextmanager
def _stages_of_one_file(build: llama_cpp.Build, gguf: Path) -> Generator[list[_Stage], None, None]:
    """Those on the way to a calibrated file, whose weights no conversion of the checkpoint gives again."""
    with tempfile.TemporaryDirectory(prefix="sherry-parity-") as directory:
        twin = Path(directory, "f32.gguf")
        command = [str(build.program("llama-quantize")), "--allow-requantize", str(gguf), str(twin), "F32"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode != 0:
            raise SherryError(f"{command[0]} failed with status {done.returncode}: {runtime.last_words(done.stderr)}")
        yield [
            _Stage("types of embedding and output", twin, ("--kv-f32",)),
            _Stage("F16 KV cache", twin),
            _Stage("8-bit activations", gguf),
        ]


def _convert(source: Source, outfile: Path, types: TypeChoice, regrid: bool) -> None:
    convert(
        source,
        outfile,
        types=replace(types, outtype=channel_order.REGRIDDED.outtype) if regrid else types,
        regrid=channel_order.EXACT if regrid else None,
        verify=False,
    )


def _add(meter: scoring.Meter, base: F32, other: F32, targets: I32) -> None:
    """float32[n, n_vocab] of both and int32[n - 1]: the last position predicts a token outside the chunk."""
    if base.shape != other.shape:
        raise SherryError(
            f"PyTorch has {base.shape[1]} logits a token, the GGUF {other.shape[1]}; give the GGUF's own checkpoint"
        )
    meter.add(base[:-1], other[:-1], targets)
