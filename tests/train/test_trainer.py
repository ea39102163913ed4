"""A teacher's part in the loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sherry_gguf.train.trainer import divergence


def test_divergence_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = 1 / (1 + torch.exp(torch.tensor(-2.0)))  # of the teacher's first token
    expected = p * torch.log(2 * p) + (1 - p) * torch.log(2 * (1 - p))
    assert divergence(student, teacher, 1.0) == pytest.approx(float(expected))
    assert divergence(teacher, teacher, 3.0) == pytest.approx(0, abs=1e-7)
    # at temperature 2 the teacher's logits are 1 and 0, and the loss is four times as large
    p = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    expected = 4 * (p * torch.log(2 * p) + (1 - p) * torch.log(2 * (1 - p)))
    assert divergence(student, teacher, 2.0) == pytest.approx(float(expected))


def test_its_gradient_is_the_difference_of_probabilities():
    torch.manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float32, requires_grad=True)
    teacher = torch.randn(3, 5)
    (found,) = torch.autograd.grad(divergence(student, teacher, 1.0), student)
    assert torch.allclose(found, functional.softmax(student, -1) - functional.softmax(teacher, -1), atol=1e-6)


def weights(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@pytest.fixture
def teacher(train):
    """A plain model, barely trained."""
    _, options = train("teacher", method="float", max_steps=2, save_dtype="float32")
    return options.out


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_batches_in_one_step_or_accumulated_are_the_same(train, teacher, share):
    """The loss is a mean over all tokens of a step, the teacher's part too: SGD, so that a wrong factor shows."""
    settings = {"teacher": teacher, "teacher_weight": share, "optim": "sgd", "save_dtype": "float32", "seed": 5}
    settings |= {"learning_rate": 0.1, "max_steps": 3}
    _, whole = train("whole", per_device_train_batch_size=4, **settings)
    _, parts = train("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings)
    for name, tensor in weights(whole.out).items():
        # the order of float32 sums differs; gradients are below 1, and three steps of 0.1 add them up
        assert torch.allclose(tensor, weights(parts.out)[name], atol=2e-6), name


def test_a_model_that_is_its_own_teacher_learns_nothing(train, teacher):
    """Plain layers, whole weight: the divergence is 0, and so is its gradient."""
    _, options = train(
        model=teacher,
        method="float",
        teacher=teacher,
        optim="sgd",
        learning_rate=1.0,
        save_dtype="float32",
        max_steps=2,
    )
    for name, tensor in weights(teacher).items():
        # what is left of a difference of equal probabilities in float32
        assert torch.allclose(tensor, weights(options.out)[name], atol=1e-6), name


def test_a_teacher_of_another_vocabulary_is_refused(train, teacher, tmp_path):
    import json
    import shutil

    from sherry_gguf.errors import SherryError

    other = shutil.copytree(teacher, tmp_path / "other")
    (other / "model.safetensors").unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(SherryError, match=r"100 tokens, .* 4096; a teacher needs the same vocabulary"):
        train(teacher=other)
