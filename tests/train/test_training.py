"""Trainings from start to end: what they write, that they can be stopped and shared, and what they refuse."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from remaking import foreign_tokenizer
from safetensors.torch import load_file

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint.declared import SHERRY_LAYERS
from sherry_gguf.cli import run_command
from sherry_gguf.errors import SherryError

EXACT = {"save_dtype": "float32", "optim": "sgd", "learning_rate": 0.1}
EXACT |= {"arenas_max": 1.0, "lr_scheduler_type": "constant_with_warmup"}


def weights(directory):
    return load_file(directory / "model.safetensors")


def history(directory):
    return json.loads((directory / "trainer_state.json").read_text())["log_history"]


def test_the_loss_falls(train):
    """80 steps of 1,024 tokens, with Arenas, in bfloat16: from a guess among 4,096 tokens to far less."""
    result, options = train(
        max_steps=80,
        per_device_train_batch_size=16,
        learning_rate=4e-3,
        arenas_max=1.0,
        lr_scheduler_type="constant_with_warmup",
        bf16=True,
        logging_steps=5,
    )
    losses = [entry["loss"] for entry in history(options.out) if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(4096), abs=0.3)
    assert losses[-1] < losses[0] - 1.5
    assert (options.out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert result.perplexity is None


@pytest.mark.parametrize(
    "scales", [{"granularity": "per_group"}, {"granularity": "per_channel"}, {"granularity": "per_tensor"}],
    ids=lambda scales: scales["granularity"],
)  # fmt: skip
def test_the_gguf_has_the_weights_of_the_training_forward(train, tmp_path, pinned_gguf, scales):
    from reading import tensors_of

    from sherry_gguf.convert import convert
    from sherry_gguf.formats import sherry
    from sherry_gguf.train.directory import load_sherry
    from sherry_gguf.train.layers import quantized_layers
    from sherry_gguf.weights.quantize import expand

    _, options = train(max_steps=2, **scales)
    assert {tensor.dtype for tensor in weights(options.out).values()} == {torch.bfloat16}
    assert json.loads((options.out / "config.json").read_text())["dtype"] == "bfloat16"
    report = convert(options.out, tmp_path / "model.gguf")
    assert "verified: 14 SHERRY tensors" in str(report.verdict)

    # rows of q and k are permuted in a GGUF: the others are compared here, all of them by the verification above
    names = {"v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up"}
    names["down_proj"] = "ffn_down"
    tensors = {name: tensor.data for name, tensor in tensors_of(tmp_path / "model.gguf").items()}
    compared = 0
    for name, layer in quantized_layers(load_sherry(options.out)[0]).items():
        number, kind = name.split(".")[2], name.split(".")[-1]
        if kind not in names:
            continue
        found = sherry.BLOCKS.unpack(tensors[f"blk.{number}.{names[kind]}.weight"])
        forward = layer.quantized_weight().numpy()
        ties = _tied(layer.weight.detach().numpy())
        equal = (np.sign(expand(*found)) == np.sign(forward)).reshape(-1, 4).all(axis=1)
        assert equal[~ties].all()
        # alpha of a float32 sum and of a float64 one may round to neighbours in fp16
        scales_found = found[1].astype(np.float32)
        assert np.allclose(scales_found, np.abs(forward).reshape(*scales_found.shape, 128).max(axis=-1), rtol=2**-10)
        compared += 1
    assert compared == 10


def _tied(latents):
    """float32[rows, k] -> bool[rows*k/4]: the groups of which several weights are the smallest (bf16 has many)."""
    magnitudes = np.abs(latents).reshape(-1, 4)
    return (magnitudes == magnitudes.min(axis=1, keepdims=True)).sum(axis=1) > 1


def test_perplexity_is_that_of_the_saved_model(train, heldout_text):
    """By the converter's reading of the directory and the parity tool's scoring, which share no code with training."""
    from sherry_gguf.checkpoint import Checkpoint
    from sherry_gguf.convert.plan import make_plan
    from sherry_gguf.parity import reference, scoring

    result, options = train(eval_data=[heldout_text], max_steps=2)
    checkpoint = Checkpoint(options.out)
    text = reference.tokenize(checkpoint, heldout_text.read_text(encoding="utf-8"))
    logits = reference.load(checkpoint, make_plan(checkpoint))
    meter = scoring.Meter()
    for chunk in scoring.cut(text.tokens, options.ctx_size, text.bos):
        found = logits(chunk)[options.ctx_size // 2 : -1]
        meter.add(found, found, chunk[options.ctx_size // 2 + 1 :])
    # ties, which the two break differently, and sums in another order
    assert result.perplexity == pytest.approx(meter.result().base_perplexity, rel=1e-3)


def test_resumed_is_uninterrupted(train, tmp_path):
    """Bit for bit, with Arenas in its fall: the data order, lambda, the rate and the optimizer go on."""
    settings = {"max_steps": 8, "save_dtype": "float32", "logging_steps": 1, "save_strategy": "steps", "save_steps": 4}
    settings |= {"arenas_max": 1.0, "arenas_end": 0.8, "lr_scheduler_type": "warmup_stable_decay"}
    _, whole = train("whole", **settings)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (whole.out / "checkpoint-4").rename(stopped / "checkpoint-4")
    _, resumed = train("stopped", resume_from_checkpoint="true", **settings)
    for name, tensor in weights(whole.out).items():
        assert torch.equal(tensor, weights(resumed.out)[name]), name
    logged = ("step", "lambda", "learning_rate", "loss")
    expected, found = (
        [[entry[key] for key in logged] for entry in history(run.out) if "loss" in entry] for run in (whole, resumed)
    )
    assert found == expected


def test_two_processes_are_one(train, model_of, untrained, heldout_text, tmp_path):
    """torchrun over gloo: each process takes half of every batch, and the weights come out the same."""
    _, one = train("one", per_device_train_batch_size=4, max_steps=4, seed=7, **EXACT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "sherry_gguf.train"]
    command += ["--model", str(untrained), "--data", str(heldout_text), "--out", str(tmp_path / "two")]
    command += ["--ctx-size", "64", "--per-device-train-batch-size", "2", "--max-steps", "4", "--seed", "7"]
    command += ["--bf16", "false", "--save-strategy", "no", "--disable-tqdm", "true", "--use-cpu", "true"]
    command += [part for key, value in EXACT.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected, start = weights(one.out), model_of(7).state_dict()
    for name, tensor in weights(tmp_path / "two").items():
        # gradients are summed in another order: float32's relative error, on weights that four steps moved by up to 0.1
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
        if name.endswith("_proj.weight"):
            assert not torch.equal(tensor, start[name]), name
    assert done.stdout.count("wrote") == 1


def test_a_sherry_checkpoint_is_trained_on(train, tiny_checkpoint, heldout_text):
    """The published trainer's own: its loss is that of a trained model from the first step on."""
    _, options = train(
        model=tiny_checkpoint, max_steps=2, ctx_size=256, learning_rate=1e-5, arenas_max=0.0, logging_steps=1
    )
    assert history(options.out)[0]["loss"] < 5


def test_what_config_json_declares_counts(train):
    """Trained on without a word of granularity and layers, a model keeps those it was trained with."""
    _, first = train("first", max_steps=1, granularity="per_channel", sherry_layers="down_proj")
    _, second = train("second", model=first.out, max_steps=1)
    config = json.loads((second.out / "config.json").read_text())
    assert (config["granularity"], config["sherry_layers"]) == ("per_channel", "down_proj")
    _, third = train("third", model=first.out, max_steps=1, group_size=64, sherry_layers=SHERRY_LAYERS)
    config = json.loads((third.out / "config.json").read_text())
    assert (config["granularity"], config["group_size"]) == ("per_group", 64)
    assert "sherry_layers" not in config


def test_what_is_there_is_not_overwritten(train, tmp_path, untrained):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(SherryError, match="is not empty"):
        train()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"precious"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SherryError, match="is a file"):
        train("file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ctx-size", "2"], "--ctx-size 2 is not in 3.."),
        (["--arenas-max", "-1"], "--arenas-max -1.0 is not in 0..100"),
        (["--arenas-end", "1.1"], "--arenas-end 1.1 is not in 0..1"),
        (["--teacher-weight", "1.5"], "--teacher-weight 1.5 is not in 0..1"),
        (["--group-size", "0"], "positive group size"),
        (["--sherry-layers", "("], "no regular expression"),
        (["--data", "none.txt"], "none.txt: no such file"),
        (["--model", "nowhere"], "nowhere: no config.json"),
        (["--group-size", "96"], "q_proj: group_size 96 does not divide rows of 128"),
        (["--load-best-model-at-end", "true"], "load_best_model_at_end requires"),
        (["--resume-from-checkpoint", "true"], "no checkpoint"),
        (["--eval-strategy", "steps"], "no texts are given that the training could be evaluated on; name them (--eval"),
        (["--eval-on-start", "true"], "no texts are given that the training could be evaluated on"),
    ],
)
def test_bad_input_is_one_line(arguments, message, untrained, heldout_text, tmp_path, capsys):
    paths = ["--model", str(untrained), "--data", str(heldout_text), "--out", str(tmp_path / "out")]
    assert run_command("train", [*paths, "--max-steps", "1", "--disable-tqdm", "true", *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_tokenizer_that_the_converter_does_not_know(random_checkpoint, pinned_gguf, train, tmp_path):
    model = foreign_tokenizer(random_checkpoint("HunYuanDenseV1", vocab_size=4224))
    with pytest.raises(SherryError, match=r"could not be converted to GGUF.*BPE pre-tokenizer was not recognized"):
        train(model=model, data=[tmp_path / "not read yet.txt"])
    train(model=model, method="absmean", max_steps=1)  # which is to compare, not to be converted


def test_a_tokenizer_of_more_tokens_than_the_model(random_checkpoint, pinned_gguf, train, tmp_path):
    model = foreign_tokenizer(random_checkpoint("HunYuanDenseV1"))
    with pytest.raises(SherryError, match=r"does not take its tokenizer, AssertionError: assert max.* < vocab_size"):
        train(model=model)


def test_an_architecture_that_the_converter_does_not_know(random_checkpoint, pinned_gguf, train):
    model = random_checkpoint("Llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["BlenderbotForCausalLM"]}))
    with pytest.raises(SherryError, match=r"could not be converted.*does not know BlenderbotForCausalLM"):
        train(model=model)


def test_without_upstreams_source_the_tokenizer_is_not_checked(train, monkeypatch, capsys):
    def offline():
        raise SherryError("no connection to the package index")

    monkeypatch.setattr(llama_cpp, "use_pinned_gguf", offline)
    _, options = train(max_steps=1)
    assert "is not known yet: no connection" in capsys.readouterr().err
    assert weights(options.out)


def test_a_quantized_model_is_not_trained_as_float(train, tiny_checkpoint):
    with pytest.raises(SherryError, match="declares sherry layers"):
        train(model=tiny_checkpoint, method="float")


def test_without_the_extra_it_is_named():
    code = "import sys; sys.modules['datasets'] = None; from sherry_gguf.cli import main; sys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "sherry-gguf train: error: needs datasets; pip install 'sherry-gguf[train]'\n"


def test_a_log_has_figures_and_no_bars(untrained, heldout_text, tmp_path, capfd):
    paths = ["--model", str(untrained), "--data", str(heldout_text), "--out", str(tmp_path / "out")]
    small = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2", "--ctx-size", "64"]
    assert run_command("train", [*paths, *small, "--max-steps", "3", "--logging-steps", "1"]) == 0
    said = capfd.readouterr()
    assert "it/s" not in said.err
    assert "Tokenizing" not in said.err
    assert said.out.count("'tokens_per_second'") == said.out.count("'seconds_left'") == 3
    first, second, third = [entry for entry in history(tmp_path / "out") if "loss" in entry]
    assert third["seconds_left"] == 0
    # a step of 8 blocks, and one is left
    assert second["tokens_per_second"] * second["seconds_left"] == pytest.approx(8 * 64)
    assert first["seconds_left"] > 0


def test_a_compiled_models_weights_are_saved_by_their_own_names(model_of, untrained, tmp_path):
    """torch.compile renames every weight of the model's state; a folder of such names holds none of its tensors."""
    from sherry_gguf.train.directory import save

    model = model_of()
    state = torch.compile(model).state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    save(model, state, untrained, tmp_path, torch.float32)
    assert set(weights(tmp_path)) == {name for name in model.state_dict() if name != "lm_head.weight"}
