"""The order of channels: the same function in PyTorch, every matrix on STQ1_0's grid, and back again."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import regridded
from sherry_gguf.parity.reference import trained_weights
from sherry_gguf.weights.channel_order import is_projection, to_consecutive, to_stride
from sherry_gguf.weights.detect import Family, Look, detect
from sherry_gguf.weights.granularity import Granularity

MODELS = ("llama", "llama-biases", "qwen2", "qwen3")
TOKENS = torch.arange(96)[None] * 37 % 4096
LONGEST_SUM = 768  # channels of the largest FFN


def moved_in(directory):
    checkpoint = Checkpoint(directory)
    return regridded(make_plan(checkpoint), checkpoint).moved


def weights_of(directory):
    checkpoint = Checkpoint(directory)
    return trained_weights(checkpoint, make_plan(checkpoint))


def logits_of(directory, dtype):
    """A function: tensors of the model -> its logits [tokens, vocabulary].

    All is computed in ``dtype``: RMS norms too, which transformers has in float32.
    """
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, config.architectures[0])(config).to(dtype).eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = torch.nn.RMSNorm.forward.__get__(module)
            module.normalized_shape, module.eps = tuple(module.weight.shape), module.variance_epsilon

    @torch.inference_mode()
    def logits(tensors):
        converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        missing = set(model.state_dict()) - set(converted)
        assert missing <= {"lm_head.weight"}  # tied
        return torch.func.functional_call(model, converted, (TOKENS,)).logits[0]

    return logits


def difference(after, before):
    return float((after - before).abs().max() / before.abs().max())


def test_the_order():
    """Of a block of 256: lane p of group g is weight (g / 16) * 64 + g % 16 + 16 * p."""
    channels = to_stride(torch.arange(512), (0,))
    for block in range(2):
        for group in range(64):
            for lane in range(4):
                place = group // 16 * 64 + group % 16 + 16 * lane
                assert channels[block * 256 + place] == block * 256 + 4 * group + lane


@pytest.mark.parametrize("model", MODELS)
def test_which_dimensions_move(model, trained_model):
    found = dict(moved_in(trained_model(model)))
    ends = {"model.embed_tokens.weight": (1,), "model.norm.weight": (0,), "lm_head.weight": (1,)}
    for name, dims in ends.items():
        assert found.pop(name, None) == (None if name == "lm_head.weight" and model == "llama" else dims)
    assert len(found) == 2 * {"llama": 9, "llama-biases": 16, "qwen2": 12, "qwen3": 11}[model]
    weights = {"q": (1,), "k": (1,), **dict.fromkeys(("v", "o", "gate", "up", "down"), (0, 1))}
    for name, dims in found.items():
        if matrix := re.search(r"(\w+)_proj\.(weight|bias)", name):
            both = weights[matrix[1]]
            assert dims == (both if matrix[2] == "weight" else both[:-1]), name
        else:
            assert dims == (() if re.search("[qk]_norm", name) else (0,)), name


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("model", MODELS)
def test_the_model_computes_the_same(model, granularity, trained_model):
    """But for the order of sums, and n terms in another order differ by n eps of their magnitudes at most.

    Of the largest logit, 2.4e-15 was seen in float64 and 1.0e-6 in float32: an eightieth of these bounds.
    """
    directory = trained_model(model, granularity)
    tensors, moved = weights_of(directory), moved_in(directory)
    permuted = {name: to_stride(tensor, moved[name]) for name, tensor in tensors.items()}
    for dtype in (torch.float64, torch.float32):
        logits = logits_of(directory, dtype)
        assert difference(logits(permuted), logits(tensors)) < LONGEST_SUM * torch.finfo(dtype).eps


@pytest.mark.parametrize("model", ["llama-biases", "qwen3"])
def test_no_dimension_of_any_tensor_can_be_left_out(model, trained_model):
    """The test above would see each of them: logits change by a fifth of the largest at least."""
    directory = trained_model(model)
    tensors, moved = weights_of(directory), moved_in(directory)
    permuted = {name: to_stride(tensor, moved[name]) for name, tensor in tensors.items()}
    logits = logits_of(directory, torch.float32)
    before = logits(tensors)
    for name, dims in moved.items():
        for left_out in dims if ".1." not in name else ():
            others = tuple(dim for dim in dims if dim != left_out)
            change = difference(logits({**permuted, name: to_stride(tensors[name], others)}), before)
            assert change > 0.1, (name, left_out)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("model", MODELS)
def test_every_matrix_is_on_the_grid_of_stq1_0(model, granularity, trained_model):
    directory = trained_model(model, granularity)
    moved, matrices = moved_in(directory), 0
    for name, tensor in weights_of(directory).items():
        if not is_projection(name):
            continue
        before, after = tensor.numpy(), to_stride(tensor, moved[name]).numpy()
        assert detect(before) == Look(Family.SHERRY, 0.25, Granularity(granularity), ("consecutive",))
        assert detect(after) == Look(Family.SHERRY, 0.25, Granularity(granularity), ("stride16",))
        zeros = (after == 0).reshape(-1, 4, 16).sum(axis=1)
        assert (zeros == 1).all(), name
        matrices += 1
    assert matrices == 14


@pytest.mark.parametrize("model", MODELS)
def test_the_inverse_restores_all_bytes(model, trained_model):
    checkpoint, moved = Checkpoint(trained_model(model)), moved_in(trained_model(model))
    assert set(checkpoint.names) == set(moved)
    for name in checkpoint.names:
        stored = checkpoint.load(name)
        there = to_stride(stored, moved[name])
        back = to_consecutive(there, moved[name])
        assert torch.equal(there, stored) == (moved[name] == ()), name
        assert torch.equal(back.view(torch.int16), stored.view(torch.int16)), name
