#!/usr/bin/env python3
"""The evidence for encoder-decoders: a small T5 of Sherry layers beside its float twin, on a task like summarising.

    python scripts/evidence_t5.py [--work DIR] [--seeds 1 2] [--steps 600] [--inputs 50]

The task: of six words in a row, write those that say something, in their order; the COMMON words that are most
frequent in the text are left out. Nine tenths of tests/data/sotu-heldout.txt are trained on, from any word on; scored
are the passages of the last tenth. The tokenizer is of those nine tenths, with few and short pieces: so little text
teaches a model to copy no more of them. Both models have equal data, steps and seeds. What they write is scored against
what they should: the share of passages where all of it is right, and ROUGE-1, the F1 of the words in common. Then
the files: what llama.cpp writes beside what PyTorch does, of the file and of the same weights in F32, which shows what
rounding activations to 8 bits changes; and the logits of the file.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers
from torch import Tensor

from sherry_gguf import inspect_file, llama_cpp
from sherry_gguf.train import convert_to_sherry
from sherry_gguf.train.directory import copy_tokenizer
from sherry_gguf.weights.granularity import Granularity

DATA = Path(__file__).parents[1] / "tests/data"
TEXT, TOKENIZER_CONFIG = DATA / "sotu-heldout.txt", DATA / "sotu-sherry/tokenizer_config.json"
WORDS, COMMON = 6, 50
LAYERS = r"\.(q|k|v|o|wi_0|wi_1|wo)(\.weight)?$"
SIZES = {"vocab_size": 768, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}
SPECIAL = {"decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BATCH, RATE = 64, 2e-3
LONGEST = 64  # tokens of an answer


@dataclass(frozen=True)
class Passage:
    """Words in a row, and those of them that are to be written."""

    text: str
    answer: str


class Task:
    """Passages to train on, drawn by a seed, and those to score."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.common = {word for word, _ in Counter(map(bare, words)).most_common(COMMON)}
        cut = len(words) * 9 // 10
        self.seen = words[:cut]
        self.scored = [self.passage(words[at : at + WORDS]) for at in range(cut, len(words) - WORDS, WORDS)]

    def passage(self, words: Sequence[str]) -> Passage:
        return Passage(" ".join(words), " ".join(word for word in words if bare(word) not in self.common))

    def batches(self, seed: int) -> Iterator[list[Passage]]:
        draw = random.Random(seed)
        while True:
            starts = [draw.randrange(len(self.seen) - WORDS) for _ in range(BATCH)]
            yield [self.passage(self.seen[at : at + WORDS]) for at in starts]


def bare(word: str) -> str:
    """A word in small letters, without what stands before and after it."""
    return word.lower().strip(".,;:!?\"'()[]-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--passages", type=int, help="to score (all)")
    parser.add_argument("--inputs", type=int, default=50, help="of these, that llama.cpp gets")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    task = Task(TEXT.read_text(encoding="utf-8"))
    tokenizer = new_tokenizer(args.work / "t5-tokenizer", task.seen)
    print("| | loss | all right | ROUGE-1 | bytes | of linear layers | the same in llama.cpp | in F32 | logits NMSE |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for seed, kind in itertools.product(args.seeds, ("float", "Sherry")):
        model = new_model(seed, sherry=kind == "Sherry")
        train(model, tokenizer, task.batches(seed), args.steps)
        directory = args.work / f"t5-{kind}-{seed}"
        save(model, args.work / "t5-tokenizer", directory)
        file = (write_sherry if kind == "Sherry" else write_float)(directory, directory.with_suffix(".gguf"))
        scored = task.scored[: args.passages]
        answers = [answer for some in batched(scored) for answer in generate(model, tokenizer, some)]
        cells = [f"{kind}, seed {seed}", f"{loss_of(model, tokenizer, scored):.3f}", *scores(scored, answers)]
        shown = scored[: args.inputs]
        cells += [*sizes(file), *equal(file, shown, answers), f"{nmse(model, tokenizer, file, shown):.1e}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def scores(passages: Sequence[Passage], answers: Sequence[str]) -> tuple[str, str]:
    """The share of answers that are all right, and the mean ROUGE-1."""
    pairs = list(zip(answers, (passage.answer for passage in passages), strict=True))
    right, rouge = sum(found == wanted for found, wanted in pairs), sum(rouge_1(*pair) for pair in pairs)
    return f"{right / len(pairs):.1%}", f"{rouge / len(pairs):.3f}"


def sizes(file: Path) -> tuple[str, str]:
    """Bytes of the file, and of the linear layers in it."""
    linear = sum(found.tensor.n_bytes for found in inspect_file(file).tensors if LINEAR.search(found.tensor.name))
    return f"{file.stat().st_size:,}", f"{linear:,}"


def equal(file: Path, passages: Sequence[Passage], answers: Sequence[str]) -> list[str]:
    """How many of the answers llama.cpp gives too, with the file and with its weights in F32."""
    in_f32 = file.with_name(f"{file.stem}-F32.gguf")
    call(llama_cpp.find_build().program("llama-quantize"), "--allow-requantize", file, in_f32, "F32")
    return [
        f"{sum(complete(one, p.text) == words for p, words in zip(passages, answers, strict=False))} of {len(passages)}"
        for one in (file, in_f32)
    ]


LINEAR = re.compile(r"blk\.\d+\.(cross_)?(attn_(q|k|v|o)|ffn_(gate|up|down))\.weight$")


def new_tokenizer(directory: Path, words: Sequence[str]) -> Any:
    """Write a SentencePiece model of the words, and open it as a Llama's, which llama.cpp's converter knows."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(directory / "tokenizer"), model_type="bpe",
        vocab_size=SIZES["vocab_size"], byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    shutil.copy(TOKENIZER_CONFIG, directory)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(directory)
    tokenizer.pad_token_id = SPECIAL["pad_token_id"]
    return tokenizer


def new_model(seed: int, sherry: bool) -> Any:
    torch.manual_seed(seed)
    config = transformers.T5Config(**SIZES, **SPECIAL, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model = transformers.T5ForConditionalGeneration(config)
    if sherry:
        convert_to_sherry(model, Granularity("per_group", 128), layers=LAYERS)
    return model


def train(model: Any, tokenizer: Any, batches: Iterator[list[Passage]], steps: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = model(**encode(tokenizer, next(batches))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def encode(tokenizer: Any, passages: Sequence[Passage]) -> dict[str, Tensor]:
    """What a T5 takes, of passages and their answers; an answer ends with EOS."""
    read = tokenizer([passage.text for passage in passages], padding=True, return_tensors="pt", padding_side="right")
    ids = [tokenizer(p.answer, add_special_tokens=False)["input_ids"] + [SPECIAL["eos_token_id"]] for p in passages]
    labels = torch.full((len(ids), max(map(len, ids))), -100)
    for row, answer in zip(labels, ids, strict=True):
        row[: len(answer)] = torch.tensor(answer)
    return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "labels": labels}


def save(model: Any, tokenizer: Path, directory: Path) -> None:
    """In bfloat16; the model is what was saved from then on."""
    model.to(torch.bfloat16).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    model.float()


def write_sherry(directory: Path, file: Path) -> Path:
    call(sys.executable, "-m", "sherry_gguf", "convert", directory, "--outfile", file, "--force")
    return file


def write_float(directory: Path, file: Path) -> Path:
    convert = llama_cpp.find_source() / "convert_hf_to_gguf.py"
    call(sys.executable, convert, directory, "--outtype", "f16", "--outfile", file)
    return file


def batched(passages: Sequence[Passage], size: int = 64) -> Iterator[Sequence[Passage]]:
    return (passages[at : at + size] for at in range(0, len(passages), size))


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any, passages: Sequence[Passage]) -> float:
    """Nats a token of the answers."""
    total = tokens = 0.0
    for some in batched(passages):
        batch = encode(tokenizer, some)
        count = int((batch["labels"] != -100).sum())
        total += model(**batch).loss.item() * count
        tokens += count
    return total / tokens


@torch.no_grad()
def generate(model: Any, tokenizer: Any, passages: Sequence[Passage]) -> list[str]:
    batch = encode(tokenizer, passages)
    read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    written = model.generate(**read, max_new_tokens=LONGEST, do_sample=False)
    return [words.strip() for words in tokenizer.batch_decode(written, skip_special_tokens=True)]


def rouge_1(found: str, wanted: str) -> float:
    """F1 of the words in common; 1 where there is nothing to write, and nothing was written."""
    one, other = Counter(found.split()), Counter(wanted.split())
    both = sum((one & other).values())
    return 2 * both / (one.total() + other.total()) if one or other else 1.0


def complete(file: Path, text: str) -> str:
    """What llama-completion writes."""
    command = [llama_cpp.find_build().program("llama-completion"), "-m", file, "-p", text, "-n", LONGEST]
    said = call(*command, "--temp", 0, "-t", 1, "-no-cnv", "--no-display-prompt")
    return said.strip().removesuffix("[end of text]").strip()


@torch.no_grad()
def nmse(model: Any, tokenizer: Any, file: Path, passages: Sequence[Passage]) -> float:
    """Squared difference of llama.cpp's logits, over PyTorch's squared, along what PyTorch writes."""
    difference = size = 0.0
    program = llama_cpp.find_build().program("sherry-logits")
    for passage in passages:
        encoder = torch.tensor([tokenizer(passage.text)["input_ids"]])
        written = model.generate(encoder, max_new_tokens=LONGEST, do_sample=False)
        expected = model(input_ids=encoder, decoder_input_ids=written).logits[0].numpy()
        ids = torch.cat([encoder, written], dim=1)[0].numpy().astype(np.int32)
        command = [program, "-m", file, "-c", written.shape[1], "--encoder", encoder.shape[1], "-t", 1]
        done = subprocess.run([str(part) for part in command], input=ids.tobytes(), capture_output=True, check=True)
        logits = np.frombuffer(done.stdout[16:], np.float32).reshape(expected.shape)
        difference += float(np.square(logits - expected).sum())
        size += float(np.square(expected).sum())
    return difference / size


def call(*command: object) -> str:
    """Run a program, and return what it prints; where it fails, that is shown."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True)
    said = done.stdout.decode(errors="replace")  # a model that is not trained writes any bytes
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {said[-1000:]}{done.stderr.decode(errors='replace')[-1000:]}")
    return said


if __name__ == "__main__":
    main()
