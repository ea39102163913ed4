#!/usr/bin/env python3
"""How fast convert is, beside upstream's convert_hf_to_gguf.py on the same folder, and how much memory each takes.

    python scripts/bench_convert.py [--shape 1b] [--layers 4] [--rounds 3] [--jobs N] [--folder DIR] [--json FILE]

The folder is a Llama of random bf16 latents in the shape that is named, which this writes, with a scale for 128 weights
as the trainer declares it. Round after round the converters take turns, each as a process of its own: upstream's with
--outtype q8_0, and ours with verification, which upstream's has not, and without.

Seconds are of the whole process, and beside them of all processors together. GB/s are bytes of the folder's weights in
a second. Memory is the most that no file backs: pages of a mapped file, which upstream's converter reads, can be
dropped. The files are in the page cache, as far as it goes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench.flags import attempt, cpus
from bench.shapes import SHAPES, Shape
from limits import cpu_name
from safetensors.torch import save_file

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

TOKENIZER = Path(__file__).parents[1] / "tests/data/sotu-sherry"
UPSTREAM = "convert_hf_to_gguf.py --outtype q8_0"
SHERRY = {"w_bits": 0, "quant_method": "sherry", "granularity": "per_group", "group_size": 128, "N": 3, "M": 4}
PARTS = {"attn": "self_attn", "ffn": "mlp"}
NAMES = {"attn_output": "self_attn.o_proj"} | {
    f"{part}_{name}": f"{PARTS[part]}.{name}_proj"
    for part, names in (("attn", "qkv"), ("ffn", ("gate", "up", "down")))
    for name in names
}


@dataclass(frozen=True)
class Figures:
    """One way of converting: seconds of each round; cpu_seconds: of all processors together; peak_gb: of all rounds."""

    command: str
    seconds: list[float]
    cpu_seconds: list[float]
    gb_s: float
    peak_gb: float


def tensors_of(shape: Shape, layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """name -> shape of all tensors, as many dictionaries as there are files."""
    yield {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden), "model.norm.weight": (shape.hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        norms: dict[str, tuple[int, ...]] = {
            f"{prefix}.{name}.weight": (shape.hidden,) for name in ("input_layernorm", "post_attention_layernorm")
        }
        yield norms | {f"{prefix}.{NAMES[name]}.weight": size for name, size in shape.linear().items()}


def configuration(shape: Shape, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        **SHERRY,
    }


def write_checkpoint(folder: Path, shape: Shape, layers: int) -> int:
    """Write a folder as a trainer would, file after file. Returns the bytes of its weights."""
    files = list(tensors_of(shape, layers))
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    index = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    random = torch.Generator().manual_seed(0)
    total = 0
    for name, tensors in zip(names, files, strict=True):
        content = {
            tensor: torch.ones(size) if len(size) == 1 else torch.randn(size, generator=random) * 0.02
            for tensor, size in tensors.items()
        }
        content = {tensor: values.bfloat16() for tensor, values in content.items()}
        total += sum(values.nbytes for values in content.values())
        save_file(content, folder / name, metadata={"format": "pt"})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(configuration(shape, layers)))
    return total


def anonymous(pid: int) -> int:
    """Bytes of memory of a process that no file backs, 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


@contextmanager
def watched(pid: int, peaks: list[int]) -> Iterator[None]:
    """Append the most memory that a process took meanwhile."""
    done, samples = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            samples.append(anonymous(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peaks.append(max(samples))


def cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: Sequence[str | Path], peaks: list[int]) -> tuple[float, float]:
    """Seconds of a command, and those of its processors. Raises SherryError where it fails."""
    before, start = cpu_seconds(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with process, watched(process.pid, peaks):
        _, said = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        last = said.strip().splitlines()[-1:]
        raise SherryError(f"{' '.join(map(str, command))} failed with {process.returncode}: {' '.join(last)}")
    return seconds, cpu_seconds() - before


def bench(arguments: argparse.Namespace) -> None:
    if not Path("/proc/self/status").exists():
        raise SherryError("memory is read in /proc, which Linux has")
    shape = SHAPES[arguments.shape]
    layers = arguments.layers or shape.layers
    upstream = llama_cpp.find_source() / "convert_hf_to_gguf.py"
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=arguments.folder) as name:
        folder, out = Path(name) / "model", Path(name) / "out.gguf"
        folder.mkdir()
        total = write_checkpoint(folder, shape, layers)
        ours: list[str | Path] = [sys.executable, "-m", "sherry_gguf", "convert", folder, "--outfile", out, "--force"]
        ours += ["--jobs", str(arguments.jobs)]
        commands: dict[str, list[str | Path]] = {
            "sherry-gguf convert": ours,
            "sherry-gguf convert --no-verify": [*ours, "--no-verify"],
            UPSTREAM: [sys.executable, upstream, folder, "--outfile", out, "--outtype", "q8_0"],
        }
        taken: dict[str, list[tuple[float, float]]] = {command: [] for command in commands}
        peaks: dict[str, list[int]] = {command: [] for command in commands}
        for turn in range(arguments.rounds):
            for command, words in commands.items():
                print(f"round {turn + 1} of {arguments.rounds}: {command}", file=sys.stderr)
                taken[command].append(timed(words, peaks[command]))
    largest = 4 * max(shape.vocabulary * shape.hidden, shape.ffn * shape.hidden)
    results = []
    for command, rounds in taken.items():
        seconds, of_cpus = map(list, zip(*rounds, strict=True))
        rate = total / statistics.median(seconds) / 1e9
        results.append(Figures(command, seconds, of_cpus, rate, max(peaks[command]) / 1e9))
    print(f"{cpu_name()}, {cpus()} processors; {arguments.shape}, {layers} layers: {total / 1e9:.2f} GB of bf16")
    print(f"the largest tensor: {largest / 1e9:.2f} GB in F32; rounds: {arguments.rounds}; --jobs {arguments.jobs}")
    print(f"{'':{len(UPSTREAM)}}  seconds  processors'    GB/s  peak GB")
    for result in results:
        medians = f"{statistics.median(result.seconds):7.1f}  {statistics.median(result.cpu_seconds):11.1f}"
        print(f"{result.command:{len(UPSTREAM)}}  {medians}  {result.gb_s:6.3f}  {result.peak_gb:7.2f}")
    if arguments.json:
        what = {
            "cpu": cpu_name(),
            "cpus": cpus(),
            "shape": arguments.shape,
            "layers": layers,
            "rounds": arguments.rounds,
        }
        figures = {**what, "gb": total / 1e9, "largest_tensor_gb": largest / 1e9}
        arguments.json.write_text(json.dumps({**figures, "results": list(map(asdict, results))}, indent=1) + "\n")


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="(1b)")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer than the shape has (all)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(3)")
    parser.add_argument("--jobs", type=int, default=cpus(), metavar="N", help=f"threads of ours (all: {cpus()})")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to put the files meanwhile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.jobs, 1 if arguments.layers is None else arguments.layers) <= 0:
        parser.error("--rounds, --jobs and --layers are positive")
    return attempt(bench, arguments)


if __name__ == "__main__":
    sys.exit(main())
