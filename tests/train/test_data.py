"""Texts to blocks, with the shipped tokenizer: against a plain way to do the same."""

from __future__ import annotations

import json

import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.train.data import bos_of, token_blocks

TEXTS = ["My fellow citizens, " * 10, "the state of the Union is strong. " * 10]


@pytest.fixture(scope="module")
def tokenizer(untrained):
    from sherry_gguf.train.directory import open_model

    return open_model(untrained)[1]


@pytest.fixture
def files(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_text(TEXTS[0])
    second.write_text(json.dumps({"text": TEXTS[1], "year": 1790}) + "\n")
    return [first, second]


def test_blocks_begin_with_bos_and_lose_only_the_end(files, tokenizer):
    flat = []
    for text in TEXTS:
        flat += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    blocks = token_blocks(files, tokenizer, 16)["input_ids"]
    assert bos_of(tokenizer) == 1
    assert len(blocks) == len(flat) // 15 > 3
    assert [token for block in blocks for token in block[1:]] == flat[: 15 * len(blocks)]
    assert all(len(block) == 16 and block[0] == 1 for block in blocks)


def test_parquet(files, tokenizer, tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "c.parquet")
    blocks = token_blocks([tmp_path / "c.parquet"], tokenizer, 16)
    assert blocks["input_ids"] == token_blocks(files, tokenizer, 16)["input_ids"]


def test_a_tokenizer_without_bos(files, bpe_tokenizer):
    """Qwen's puts none: a block is text alone."""
    assert bos_of(bpe_tokenizer) is None
    blocks = token_blocks(files, bpe_tokenizer, 16)["input_ids"]
    (first,) = bpe_tokenizer([TEXTS[0]])["input_ids"]
    assert blocks[0] == first[:16]


def test_what_cannot_be_read_is_one_line(files, tokenizer, tmp_path):
    def refused(name, content=None):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SherryError) as error:
            token_blocks([tmp_path / name], tokenizer, 16)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file" in refused("none.txt")
    assert ".bin is none of .txt" in refused("x.bin", "")
    assert "no suffix is none of .txt" in refused("y", "")
    assert "less text than one block of 16 tokens" in refused("short.txt", "few words")
    assert 'have no "text", only words' in refused("other.jsonl", '{"words": "a"}\n')
    assert "cannot be read" in refused("broken.jsonl", '{"text": "a"\n{{')
    assert "cannot be read" in refused("bytes.parquet", "no parquet")
    assert "holds no records" in refused("empty.jsonl", "")
    assert "holds no records" in refused("empty.json", "[]")
    assert "holds no records" in refused("braces.jsonl", "{}\n")
    assert 'record 2 has no "text"' in refused("null.jsonl", '{"text": "a"}\n{"text": null}\n')
    assert 'record 2 has no "text"' in refused("lacking.jsonl", '{"text": "a"}\n{}\n')
    assert 'the "text" of its records is null' in refused("nulls.jsonl", '{"text": null}\n')
    assert 'the "text" of its records is int64' in refused("number.jsonl", '{"text": 1}\n')
    assert 'the "text" of its records is a list' in refused("list.jsonl", '{"text": ["a"]}\n')
    assert 'the "text" of its records is of several types' in refused("mixed.jsonl", '{"text": "a"}\n{"text": 1}\n')
    assert "cannot be read" in refused("bare.jsonl", "3\n")


@pytest.mark.parametrize("name", ["part[1].txt", "part*.txt", "part?.txt", "folder[1]/part{1}.txt"])
def test_a_path_is_no_pattern(name, files, tokenizer, tmp_path):
    (tmp_path / "folder[1]").mkdir()
    for other in ("part1.txt", "part2.txt", "folder1.txt"):
        (tmp_path / other).write_text("something else " * 50)
    (tmp_path / name).write_text(TEXTS[0])
    found = token_blocks([tmp_path / name], tokenizer, 16)["input_ids"]
    assert found == token_blocks(files[:1], tokenizer, 16)["input_ids"]


def test_long_and_short_strings_are_joined(files, tokenizer, tmp_path):
    """Parquet has two types of string, which other programs choose between."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": pyarrow.array(TEXTS[1:], pyarrow.large_string())})
    parquet.write_table(table, tmp_path / "large.parquet")
    found = token_blocks([files[0], tmp_path / "large.parquet"], tokenizer, 16)["input_ids"]
    assert found == token_blocks(files, tokenizer, 16)["input_ids"]
