"""Threads change nothing but the time: the same bytes, the same refusals, the same progress."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sherry_gguf.convert import TypeChoice, convert, model
from sherry_gguf.errors import SherryError
from sherry_gguf.formats import registration
from sherry_gguf.formats.scales import rounded
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.threads import in_parts, threads
from sherry_gguf.weights.compare import compare
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

COUNTS = [1, 2, 3]


def latents(rows: int = 700, k: int = 512) -> torch.Tensor:
    """bf16 noise in six parts: ties, a block of zeros, and rows that end in a part of their own."""
    weights = (torch.randn(rows, k, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    weights[rows - 1, 128:256] = 0
    return weights


@pytest.mark.parametrize("granularity", [Granularity(), Granularity("per_channel"), Granularity("per_tensor")], ids=str)
def test_codes_and_scales_are_the_same(granularity):
    weights = latents()
    found = []
    for count in COUNTS:
        with threads(count):
            grid = quantize(weights, granularity)
            values = grid.weights(rounded(grid.scales))
            found.append((grid.codes, grid.scales, values, SHERRY.pack(values)))
    assert grid.ties > 100
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert np.array_equal(one, other)


def test_floats_of_every_type_are_read():
    weights = latents()
    expected = quantize(weights.float().numpy())
    for same in (weights, weights.float(), weights.double()):
        found = quantize(same)
        assert np.array_equal(found.codes, expected.codes)
        assert np.array_equal(found.scales, expected.scales)


@pytest.mark.parametrize("count", COUNTS)
def test_the_first_of_several_mistakes_is_named(count):
    weights = latents()
    weights[650, 8], weights[300, 40], weights[299, 4:6] = torch.nan, torch.inf, 0
    with threads(count):
        with pytest.raises(SherryError, match=r"2 weights are not finite, the first in row 300, group 10 "):
            quantize(weights)
        weights[650, 8], weights[300, 40], weights[640, 4:6] = 1, 1, 0
        with pytest.raises(SherryError, match=r"2 groups .* the first in row 299, group 1 "):
            quantize(weights)


@pytest.mark.parametrize("count", COUNTS)
def test_the_first_wrong_weight_is_named(count):
    found = quantize(latents())
    trained = found.weights()
    packed = SHERRY.pack(found.weights(rounded(found.scales)))
    packed[[500, 200], 22] ^= 1  # an index of the second block
    with threads(count):
        check = compare("x", packed, trained, SHERRY)
    assert (check.tensors, check.weights, check.scales) == (1, trained.size, trained.size // 128)
    assert check.first_wrong == "x, row 200, group 32 (weights 128..131)"


@pytest.mark.parametrize("count", COUNTS)
def test_the_file_is_the_same(count, tiny_checkpoint, sherry_gguf_file, tmp_path, capsys):
    with threads(count):
        convert(tiny_checkpoint, tmp_path / "x.gguf", progress=True)
    assert (tmp_path / "x.gguf").read_bytes() == sherry_gguf_file.read_bytes()
    said = capsys.readouterr().err
    assert "Writing: 100%" in said
    assert "Verifying: 100%" in said
    assert "56/56" in said


@pytest.fixture
def chunked(monkeypatch):
    """Names of the tensors that are written some rows at a time, which here are all matrices that stay as they are."""
    names = []
    make = model._chunked

    def watched(chunked_type, checkpoint, name):
        names.append(name)
        return make(chunked_type, checkpoint, name)

    monkeypatch.setattr(model, "_LARGE", 1000)
    monkeypatch.setattr(model, "_chunked", watched)
    return names


@pytest.mark.parametrize("output", [None, "f16"])
def test_a_large_tensor_is_written_some_rows_at_a_time(output, tiny_checkpoint, tmp_path, pinned_gguf, request):
    types = TypeChoice(output=output)
    whole = convert(tiny_checkpoint, tmp_path / "whole.gguf", types=types).outfile
    names = request.getfixturevalue("chunked")
    chunked = convert(tiny_checkpoint, tmp_path / "chunked.gguf", types=types).outfile
    assert names == ["model.embed_tokens.weight"]  # once, for an output of its own type, too
    assert chunked.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_embedding_that_is_not_finite_is_refused(at_once, count, tiny_checkpoint, tmp_path, pinned_gguf, request):
    if not at_once:
        request.getfixturevalue("chunked")
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    state = load_file(damaged / "model.safetensors")
    state["model.embed_tokens.weight"][3000, 7], state["model.embed_tokens.weight"][4000, 1] = torch.inf, torch.nan
    save_file(state, damaged / "model.safetensors")
    with threads(count), pytest.raises(SherryError, match=r"2 weights are not finite, the first at \[3000, 7\]"):
        convert(damaged, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_gguf_py_works_on_rows_in_these_threads(pinned_gguf, monkeypatch):
    """Its function for that is replaced: one of another name would be left alone in silence."""
    rows = []

    def watched(work, length, step):
        rows.append(length)
        return in_parts(work, length, step)

    registration.use_threads()
    monkeypatch.setattr(registration, "in_parts", watched)
    values = np.random.default_rng(0).standard_normal((3, 300, 256)).astype(np.float32)
    q8_0 = pinned_gguf.GGMLQuantizationType.Q8_0
    packed = pinned_gguf.quants.quantize(values, q8_0)
    assert packed.shape == (3, 300, 272)
    one_by_one = [pinned_gguf.quants._type_traits[q8_0].quantize_rows(row[None]) for row in values.reshape(-1, 256)]
    assert np.array_equal(packed.reshape(900, 272), np.concatenate(one_by_one))
    assert np.abs(pinned_gguf.quants.dequantize(packed, q8_0) - values).max() < 0.02
    assert rows == [900, 900]
