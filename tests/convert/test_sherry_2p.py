"""SHERRY_2P asked for: what SHERRY holds, byte for byte beside 22 zero bytes, and nothing that would change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reading import field, tensors_of, values_of
from refusals import refused
from remaking import remake
from safetensors.torch import load_file

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.calibrated import Calibration
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.verify import verify
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry_2p import SHERRY_2P, pack_planes

pytestmark = pytest.mark.usefixtures("pinned_gguf")

ASKED = TypeChoice(outtype="sherry_2p")


def keys(path):
    return field(path, "general.file_type"), field(path, "sherry.format_version")


def test_a_sherry_model_and_back(random_checkpoint, sherry_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = random_checkpoint("Llama", sherry=sherry_config)
    one = convert(directory, tmp_path / "one.gguf").outfile
    report = convert(directory, tmp_path / "two.gguf", types=ASKED)
    assert str(report.verdict).startswith("verified: 14 SHERRY_2P tensors")
    assert (keys(one), keys(report.outfile)) == ((512, 1), (521, 2))
    assert report.bits_per_weight("SHERRY_2P") == 2.75
    for name, tensor in tensors_of(one).items():
        found = tensors_of(report.outfile)[name]
        if tensor.tensor_type.name == "SHERRY":
            blocks = found.data.reshape(-1, 44)
            assert np.array_equal(blocks[:, :22], tensor.data.reshape(-1, 22))
            assert not blocks[:, 22:].any()
    assert all(np.array_equal(values_of(one)[name], values) for name, values in values_of(report.outfile).items())
    assert main(["requantize", "one.gguf", "--outtype", "sherry_2p", "--outfile", "there.gguf"]) == 0
    assert (tmp_path / "there.gguf").read_bytes() == report.outfile.read_bytes()
    assert main(["requantize", "there.gguf", "--outtype", "sherry", "--outfile", "back.gguf"]) == 0
    assert (tmp_path / "back.gguf").read_bytes() == one.read_bytes()
    assert main(["inspect", "two.gguf"]) == 0
    assert "id 521 (14 tensors): SHERRY_2P, a private id of this project" in capsys.readouterr().out


def test_what_would_change_is_refused(random_checkpoint, sherry_config, tmp_path):
    finer = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 32})
    with refused(r"[\d,]+ of 131,072 weights do not fit SHERRY_2P .* 14 of 14 .*; --outtype sherry_g32 holds all$"):
        convert(finer, tmp_path / "x.gguf", types=ASKED)
    narrow = random_checkpoint("Llama", sherry={**sherry_config, "granularity": "per_channel"}, hidden_size=96)
    with refused(r"rows of 96 weights do not fit SHERRY_2P: "):
        convert(narrow, tmp_path / "x.gguf", types=ASKED)
    plain = random_checkpoint("Llama")
    with refused(r"hold floating-point weights without a pattern of zeros"):
        convert(plain, tmp_path / "x.gguf", types=ASKED)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.fixture
def two_planes(random_checkpoint, tmp_path):
    """A checkpoint whose linear layers are what the blocks of SHERRY_2P give back, in float32."""
    rng = np.random.default_rng(3)

    def sums(name, w):
        codes = rng.integers(32, size=(2, len(w), w.shape[1] // 4), dtype=np.uint8)
        scales = np.sort(rng.random((2, len(w), w.shape[1] // 128), dtype=np.float32) * 0.1, axis=0)[::-1]
        return torch.from_numpy(SHERRY_2P.dequantize(pack_planes(*codes, *scales.astype(np.float16))))

    return remake(random_checkpoint("Llama"), tmp_path / "sums", sums)


def test_a_checkpoint_of_two_planes(two_planes, tmp_path, capsys, heldout_text):
    """It is told from a plain one, and taken as it is: by asking for the type, or for the smallest that holds it."""
    assert main(["inspect", str(two_planes)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the sum of two ternary planes, each with one zero in every group of 4 weights (SHERRY_2P, baked)" in said
    assert "14 two-plane Sherry layers" in said
    with refused(r"do not fit SHERRY and would change: .*; --outtype sherry_2p holds all$"):
        convert(two_planes, tmp_path / "x.gguf")
    stored = load_file(two_planes / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    for types in (ASKED, TypeChoice(outtype="auto"), replace(ASKED, overrides=[("ffn_down", "f32")])):
        found = convert(two_planes, tmp_path / "x.gguf", types=types, force=True)
        assert " SHERRY_2P tensors, " in str(found.verdict)
        assert found.losses == {}
        assert np.array_equal(values_of(found.outfile)["blk.1.ffn_down.weight"], stored)
    with refused(r"has two planes already, and is exact as it is; leave out --calibrate$"):
        convert(two_planes, tmp_path / "y.gguf", types=ASKED, calibration=Calibration(heldout_text))


def test_one_weight_of_a_checkpoint_that_is_no_sum(two_planes, tmp_path):
    def change(name, w):
        if name == "model.layers.1.mlp.up_proj.weight":
            w[300, 5] += 1e-3
        return w

    damaged = remake(two_planes, tmp_path / "damaged", change)
    with refused(r"^blk.1.ffn_up.weight: [\d,]+ of 131,072 weights do not fit SHERRY_2P and would change: .* 1 of 14 "):
        convert(damaged, tmp_path / "x.gguf", types=ASKED)


def test_damage_is_found(random_checkpoint, sherry_config, tmp_path):
    """A bit of a code, and of a scale, in either plane."""
    directory = random_checkpoint("Llama", sherry=sherry_config)
    checkpoint = Checkpoint(directory)
    job = Job(checkpoint, make_plan(checkpoint), ASKED, as_trained=True)
    file = convert(directory, tmp_path / "x.gguf", types=ASKED, verify=False).outfile
    assert verify([file], open_model(replace(job), file)).sherry.tensors == 14
    tensor = tensors_of(file)["blk.1.ffn_up.weight"]
    block = tensor.data_offset + 2 * tensor.data.shape[1]
    for offset, bit, group in ((1, 4, 1), (20, 1, 0), (42, 1, 0)):
        content = bytearray(file.read_bytes())
        content[block + offset] ^= bit
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(SherryError, match=rf"ffn_up\.weight, row 2, group {group} "):
            verify([tmp_path / "damaged.gguf"], open_model(replace(job), file))
