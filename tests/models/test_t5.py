"""An encoder-decoder with Sherry layers in both halves, trained for a moment: llama.cpp writes what PyTorch does."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import torch
import transformers
from reading import tensors_of

from sherry_gguf.convert import convert
from sherry_gguf.train import convert_to_sherry
from sherry_gguf.weights.granularity import Granularity

pytestmark = pytest.mark.runtime

LAYERS = r"\.(q|k|v|o|wi_0|wi_1|wo)(\.weight)?$"
SIZES = {"vocab_size": 4096, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}
SPECIAL = {"decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXTS = ("My fellow citizens", "The state of the Union", "We the people", "Our economy is strong")
STEPS, TARGET = 60, 8


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, heldout_text, tmp_path_factory):
    """(directory, model, tokenizer): each of TEXTS was taught its own eight tokens of another text."""
    torch.manual_seed(1)
    config = transformers.T5Config(**SIZES, **SPECIAL, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model = transformers.T5ForConditionalGeneration(config)
    convert_to_sherry(model, Granularity("per_group", 128), layers=LAYERS)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.pad_token_id = SPECIAL["pad_token_id"]
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt", padding_side="right")
    words = tokenizer(heldout_text.read_text(encoding="utf-8")[:400])["input_ids"][1 : 1 + TARGET * len(TEXTS)]
    labels = torch.tensor(words).reshape(len(TEXTS), TARGET)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        loss = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5
    directory = tmp_path_factory.mktemp("t5")
    model.to(torch.bfloat16).save_pretrained(directory)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, directory)
    return directory, model.float().eval(), tokenizer


@pytest.fixture(scope="module")
def file(pinned_gguf, trained, tmp_path_factory):
    return convert(trained[0], tmp_path_factory.mktemp("converted") / "t5.gguf").outfile


def test_generation(runtime, file, trained):
    _, model, tokenizer = trained
    sherry = [name for name, tensor in tensors_of(file).items() if tensor.tensor_type.name == "SHERRY"]
    assert len(sherry) == 2 * (4 + 3) + 2 * (4 + 4 + 3)
    assert {name.split(".")[0] for name in sherry} == {"enc", "dec"}
    written = set()
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model.generate(ids, max_new_tokens=TARGET, do_sample=False)[0, 1:]
        command = [runtime.program("llama-completion"), "-m", file, "-p", text, "-n", TARGET, "--temp", 0, "-t", 1]
        done = subprocess.run(
            [*map(str, command), "-no-cnv", "--no-display-prompt"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == tokenizer.decode(expected).strip()
        written.add(done.stdout)
    assert len(written) == len(TEXTS)


@pytest.mark.parametrize("tokens", [2, TARGET + 1], ids=["fewer than the encoder's", "all"])
def test_logits(runtime, file, trained, tokens):
    """Of the decoder, each of TEXTS having gone through the encoder. Llama.cpp rounds activations to 8 bits."""
    _, model, tokenizer = trained
    for text in TEXTS:
        encoder = torch.tensor([tokenizer(text)["input_ids"]])
        written = model.generate(encoder, max_new_tokens=TARGET, do_sample=False)[:, :tokens]
        with torch.no_grad():
            expected = model(input_ids=encoder, decoder_input_ids=written).logits[0].numpy()
        ids = torch.cat([encoder, written], dim=1)[0].numpy().astype(np.int32)
        command = [runtime.program("sherry-logits"), "-m", file, "-c", written.shape[1], "--encoder", encoder.shape[1]]
        done = subprocess.run([*map(str, command), "-t", "1"], input=ids.tobytes(), capture_output=True)
        assert done.returncode == 0, done.stderr[-2000:]
        logits = np.frombuffer(done.stdout[16:], np.float32).reshape(expected.shape)
        assert np.square(logits - expected).sum() < 1e-3 * np.square(expected).sum()


def test_an_encoder_wants_its_tokens(runtime, file, sherry_gguf_file):
    program = str(runtime.program("sherry-logits"))
    done = subprocess.run([program, "-m", str(file), "-c", "4"], input=b"", capture_output=True)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"has an encoder, which needs --encoder N" in done.stderr
    done = subprocess.run(
        [program, "-m", str(sherry_gguf_file), "-c", "4", "--encoder", "3"], input=b"", capture_output=True
    )
    assert b"has no encoder" in done.stderr
