"""Every way out that a message names is followed on the input that raised it, and is seen to work.

A case makes an input and a command line that is refused. What the message says is then done as it says it: its flags,
read out of the text, with the value that a person would put for a placeholder.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from reading import tensors_of
from remaking import PROJECTION, foreign_tokenizer, remake
from safetensors.torch import load_file, save_file

from sherry_gguf.cli import COMMANDS, main
from sherry_gguf.commands import adapter as adapter_command
from sherry_gguf.commands import convert as convert_command
from sherry_gguf.commands import requantize as requantize_command
from sherry_gguf.commands import retag as retag_command
from sherry_gguf.commands import train as train_command
from sherry_gguf.convert import convert
from sherry_gguf.errors import Way
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")

FLAG = re.compile(r"(--[a-z][\w-]*)(?: ((?:'[^']*'|[^-\s;,()]\S*?)(?=[\s;,()]|$)))?")
PROJECTIONS = PROJECTION.pattern
SWITCHES = ("--allow-lossy", "--force", "--no-verify", "--trust-remote-code", "--verbose")
SMALL = {"intermediate_size": 256, "num_hidden_layers": 2}


@dataclass
class Case:
    """A command line that is refused.

    way       the one to follow
    said      its words
    fill      what a person puts for a placeholder in them
    drop      flags that the words tell to leave out
    ways      of the command
    """

    line: list[str]
    way: Way
    fill: dict[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()


CASES: dict[str, Callable[..., Case]] = {}


def case(make: Callable[..., Case]) -> Callable[..., Case]:
    CASES[make.__name__] = make
    return make


class Inputs:
    """Checkpoints and files to refuse."""

    def __init__(self, tiny: Path, random: Callable[..., Path], sherry: dict, text: Path, folder: Path) -> None:
        self.tiny, self.random, self.sherry, self.text, self.folder = tiny, random, sherry, text, folder

    def out(self) -> list[str]:
        return ["--outfile", str(self.folder / "x.gguf")]

    def convert(self, model: Path, *more: str) -> list[str]:
        return ["convert", str(model), *self.out(), *more]

    def change(self, change: Callable[[str, torch.Tensor], torch.Tensor], *, silent: bool = True) -> Path:
        """A small Llama whose Sherry layers are changed, and whose config.json says how it was trained, or does not."""
        keys = {} if silent else self.sherry
        return remake(self.random("Llama", sherry=self.sherry, **SMALL), self.folder / "changed", change, **keys)

    def plain(self) -> Path:
        return self.change(lambda _, w: w)

    def baked(self, granularity: Granularity | None = None, only: str = "") -> Path:
        def bake(name: str, w: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(quantize(w.float().numpy(), granularity).weights()) if only in name else w

        return self.change(bake)

    def with_scales(self, granularity: str, size: int = 128, **config: int) -> Path:
        sherry = {**self.sherry, "granularity": granularity, "group_size": size}
        return self.random("Llama", sherry=sherry, **{**SMALL, **config})

    def narrow(self) -> Path:
        return self.random("Llama", sherry=self.sherry, hidden_size=144, head_dim=36, **SMALL)

    def gguf(self, outtype: str = "sherry") -> Path:
        source = self.with_scales("per_channel")
        return convert(
            source, self.folder / f"{outtype}.gguf", types=convert_command.TypeChoice(outtype=outtype)
        ).outfile


@pytest.fixture
def inputs(tiny_checkpoint, random_checkpoint, sherry_config, heldout_text, tmp_path):
    return Inputs(tiny_checkpoint, random_checkpoint, sherry_config, heldout_text, tmp_path)


@case
def a_state_dict(i):
    torch.save(load_file(i.tiny / "model.safetensors"), i.folder / "x.pt")
    return Case(i.convert(i.folder / "x.pt"), Way.CONFIG_DIRECTORY, {"DIR": str(i.tiny)})


@case
def two_state_dicts_in_a_folder(i):
    model = i.folder / "model"
    shutil.copytree(i.tiny, model)
    for name in ("a.pt", "b.pt"):
        torch.save(load_file(model / "model.safetensors"), model / name)
    (model / "model.safetensors").unlink()
    return Case(i.convert(model), Way.STATE_DICT)


@case
def a_tokenizer_that_is_code(i):
    model = i.folder / "model"
    shutil.copytree(i.random("HunYuanDenseV1", sherry=i.sherry), model)
    (model / "own.py").write_text(
        "import transformers\n"
        "class Config(transformers.HunYuanDenseV1Config):\n    model_type = 'no_known_type'\n"
        "class Tokenizer(transformers.Qwen2Tokenizer):\n    pass\n"
    )
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoTokenizer": [None, "own.Tokenizer"]}}
    names = {"config": {"model_type": "no_known_type"}, "tokenizer_config": {"tokenizer_class": "Tokenizer"}}
    for name, changes in names.items():
        path = model / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **own, **changes}))
    return Case(i.convert(model), Way.TRUST_REMOTE_CODE)


@case
def latents_without_a_word(i):
    return Case(i.convert(i.plain()), Way.DECLARE)


@case
def latents_of_another_grid_without_a_word(i):
    return Case(i.convert(i.plain()), Way.DECLARE_STRIDE)


@case
def a_plain_model(i):
    return Case(i.convert(i.plain()), Way.CHANGE_WEIGHTS)


@case
def latents_with_their_zeros_applied(i):
    def mask(_, w):
        return torch.where(torch.from_numpy(quantize(w.float().numpy()).weights()) == 0, 0, w)

    return Case(i.convert(i.change(mask)), Way.DECLARE_SPARSE)


@case
def dense_ternary_weights_that_are_declared_sherry(i):
    return Case(
        i.convert(i.change(lambda _, w: torch.sign(w) * (w.abs() > 0.02) / 32, silent=False)), Way.DECLARE_TERNARY
    )


@case
def dense_ternary_weights_but_for_rounding(i):
    def bake(_, w):
        x = w.reshape(-1, 256)
        mean = x.abs().mean(-1, keepdim=True)
        return (x + (x.sign() * (x.abs() >= mean / 2) * mean - x)).reshape(w.shape)

    return Case(i.convert(i.change(bake)), Way.DECLARE_ROUNDED)


@case
def latents_of_a_dense_method_without_a_word(i):
    return Case(i.convert(i.plain()), Way.DECLARE_DENSE)


@case
def scale_runs_that_cross_the_end_of_a_row(i):
    return Case(i.convert(i.with_scales("per_group", 96)), Way.GROUP_SIZE, {"N": "128"})


@case
def no_layer_of_that_name(i):
    line = i.convert(i.tiny, "--sherry-layers", "nothing")
    return Case(line, Way.NAME_LAYERS, {"REGEX": PROJECTIONS})


@case
def a_norm_that_is_no_layer(i):
    line = i.convert(i.tiny, "--sherry-layers", r"(layernorm|_proj)\.weight$")
    return Case(line, Way.LEAVE_OUT, {"REGEX": PROJECTIONS})


@case
def floats_beside_baked_layers(i):
    return Case(i.convert(i.baked(only="mlp")), Way.ONLY_BAKED, {"REGEX": "mlp.*_proj"})


@case
def a_grid_that_baked_layers_have_not(i):
    return Case(i.convert(i.baked(), "--grid", "stride16"), Way.SEEN_GRID, drop=("--grid",))


@case
def a_type_of_larger_blocks(i):
    return Case(i.convert(i.tiny, "--outtype", "tq2_0"), Way.ALL_FIT)


@case
def layers_of_which_no_one_type_holds_all(i):
    def bake(name, w):
        return torch.from_numpy(
            quantize(w.float().numpy(), Granularity("per_group", 16 if "down" in name else 64)).weights()
        )

    line = i.convert(i.change(bake), "--outtype", "sherry")
    return Case(line, Way.REST_AS)


@case
def a_layer_that_neither_default_type_holds(i):
    def bake(name, w):
        return torch.from_numpy(
            quantize(w.float().numpy(), Granularity("per_group", 16 if "down" in name else 32)).weights()
        )

    return Case(i.convert(i.change(bake)), Way.REST_AS)


@case
def scales_too_fine_for_a_type_asked_for(i):
    return Case(i.convert(i.with_scales("per_group", 32), "--outtype", "sherry"), Way.ALL_FIT)


@case
def a_plain_model_that_is_not_to_be_trained(i):
    return Case(i.convert(i.plain(), "--no-verify"), Way.CALIBRATE, {"TEXT": str(i.text)})


@case
def a_calibration_that_is_not_needed(i):
    line = i.convert(i.tiny, "--outtype", "sherry", "--calibrate", str(i.text))
    return Case(line, Way.NO_CALIBRATION, drop=("--calibrate",))


@case
def layers_of_two_grids(i):
    def bake(name, w):
        grid = "stride16" if "mlp" in name else "consecutive"
        return torch.from_numpy(quantize(w.float().numpy(), Granularity("per_group", 256), grid=grid).weights())

    return Case(i.convert(i.change(bake), "--outtype", "sherry"), Way.AUTO)


@case
def rows_that_a_chosen_type_does_not_fit(i):
    line = i.convert(i.narrow(), "--sherry-layers", "down_proj", "--token-embedding-type", "f16")
    line += ["--output-tensor-type", "f16", "--tensor-type", "attn_q=q8_0"]
    return Case(line, Way.OTHER_TYPE, {"REGEX": "attn_q"}, drop=("--tensor-type",))


@case
def rows_of_an_embedding(i):
    line = i.convert(i.narrow(), "--sherry-layers", "down_proj", "--output-tensor-type", "f16")
    return Case(line, Way.EMBEDDING_TYPE)


@case
def rows_of_an_output(i):
    line = i.convert(i.narrow(), "--sherry-layers", "down_proj", "--token-embedding-type", "f16")
    return Case(line, Way.OUTPUT_TYPE)


@case
def a_scale_beyond_fp16(i):
    model = i.change(silent=False, change=lambda name, w: w * (1e8 if "layers.1.mlp.up_proj" in name else 1))
    return Case(i.convert(model), Way.KEEP_SCALES, {"REGEX": "blk.1.ffn_up"})


@case
def a_scale_too_small_for_fp16(i):
    model = i.change(silent=False, change=lambda name, w: w * (1e-9 if "layers.1.mlp.up_proj" in name else 1))
    return Case(i.convert(model, "--outtype", "q2_0"), Way.KEEP_SCALES, {"REGEX": "blk.1.ffn_up"})


@case
def neighbours_for_the_other_grid(i):
    model = i.with_scales("per_channel", intermediate_size=512)
    return Case(i.convert(model, "--outtype", "stq1_0"), Way.REGRID)


@case
def channels_that_are_in_that_order_already(i):
    line = i.convert(i.with_scales("per_channel"), "--grid", "stride16", "--outtype", "stq1_0", "--regrid", "exact")
    return Case(line, Way.NO_REGRID, drop=("--regrid",))


@case
def scales_too_fine_for_another_order(i):
    line = i.convert(i.with_scales("per_group"), "--outtype", "stq1_0", "--regrid", "exact")
    return Case(line, Way.AUTO_NO_REGRID, drop=("--regrid",))


@case
def another_order_for_a_type_that_needs_none(i):
    return Case(i.convert(i.with_scales("per_channel"), "--regrid", "exact"), Way.REGRID_TYPE)


@case
def a_file_in_the_way(i):
    (i.folder / "x.gguf").write_bytes(b"another file")
    return Case(i.convert(i.tiny), Way.REPLACE)


@case
def a_file_in_the_way_of_requantizing(i):
    (i.folder / "x.gguf").write_bytes(b"another file")
    line = ["requantize", str(i.gguf()), "--outtype", "q2_0", *i.out()]
    return Case(line, Way.OTHER_OUTFILE, {"--outfile": str(i.folder / "y.gguf")})


@case
def a_folder_that_is_not_there(i):
    line = ["convert", str(i.tiny), "--outfile", str(i.folder / "absent" / "x.gguf")]
    return Case(line, Way.OTHER_OUTFILE, {"--outfile": str(i.folder / "x.gguf")})


@case
def a_requantized_type_that_does_not_fit(i):
    line = ["requantize", str(i.gguf()), "--outtype", "stq1_0", *i.out()]
    return Case(line, Way.ALL_FIT)


@case
def a_file_of_bitnet_cpp(i):
    """One tensor, ``w``, of two rows of 256 zeros in I2_S."""
    head = b"GGUF" + struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"w", 2, 256, 2, 36, 0)
    (i.folder / "i2_s.gguf").write_bytes(head + bytes(-len(head) % 32) + b"\x55" * 128 + struct.pack("<f28x", 0.5))
    return Case(["requantize", str(i.folder / "i2_s.gguf"), "--outtype", "tq2_0", *i.out()], Way.I2S_LAYOUT)


@case
def a_file_that_does_not_load(i):
    model = i.random("Qwen2", sherry=i.sherry)
    state = load_file(model / "model.safetensors")
    state["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(8)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return Case(i.convert(model), Way.UNVERIFIED)


@case
def nothing_to_requantize(i):
    types = convert_command.TypeChoice("f32", "f32", [(".*", "f32")])
    path = convert(i.with_scales("per_channel"), i.folder / "f32.gguf", types=types).outfile
    return Case(["requantize", str(path), "--outtype", "q2_0", *i.out()], Way.INSPECT)


@case
def a_text_shorter_than_a_context(i):
    (i.folder / "text.txt").write_text("My fellow citizens, the state of the Union is strong.\n" * 9)
    model = i.random("Llama", **SMALL)
    line = ["train", "--model", str(model), "--data", str(i.folder / "text.txt"), "--out", str(i.folder / "out")]
    line += ["--ctx-size", "4096", "--max-steps", "1", "--disable-tqdm", "true"]
    return Case(line, Way.CONTEXT, {"--ctx-size": "32"}, drop=("--ctx-size",))


def training(i, *more):
    line = ["train", "--model", str(i.random("Llama", **SMALL)), "--data", str(i.text), "--out", str(i.folder / "out")]
    return [*line, "--ctx-size", "64", "--max-steps", "1", "--disable-tqdm", "true", *more]


@case
def a_training_in_the_way(i):
    assert main(training(i)) == 0
    return Case(training(i), Way.OTHER_DIRECTORY, {"--out": str(i.folder / "other")}, drop=("--out",))


@case
def a_training_to_go_on_with(i):
    assert main(training(i, "--save-steps", "1")) == 0
    return Case([*training(i), "--max-steps", "2"], Way.RESUME)


@case
def a_tokenizer_that_the_converter_does_not_know(i):
    line = training(i)
    model = foreign_tokenizer(i.random("HunYuanDenseV1", vocab_size=4224, **SMALL))
    return Case([part if part != line[2] else str(model) for part in line], Way.KNOWN_TOKENIZER, {"DIR": line[2]})


@case
def nothing_to_evaluate_on(i):
    short = i.folder / "short.txt"  # the held-out text would be evaluated on for half a minute
    short.write_text("My fellow citizens, the state of the Union is strong.\n" * 30)
    return Case(training(i, "--eval-strategy", "steps", "--eval-steps", "1"), Way.EVAL_DATA, {"FILE": str(short)})


@case
def nothing_to_go_on_with(i):
    line = training(i, "--resume-from-checkpoint", "true")
    return Case(line, Way.START_ANEW, drop=("--resume-from-checkpoint",))


def adapter(i, base: Path | None = None) -> tuple[list[str], str]:
    """A command line for a random LoRA that says that it was trained on ``base``, and the model that it fits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = i.with_scales("per_group")
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    lora.peft_config["default"].base_model_name_or_path = str(base or model)
    lora.save_pretrained(i.folder / "lora")
    return ["adapter", str(i.folder / "lora"), *i.out()], str(model)


@case
def a_lora_without_its_base(i):
    line, model = adapter(i, i.folder / "absent")
    return Case([*line, "--alpha", "2"], Way.BASE, {"DIR": model})


@case
def nothing_to_choose_alpha_on(i):
    return Case(adapter(i)[0], Way.ALPHA, {"FILE": str(i.text), "X": "2"})


def words_of(line: list[str], way: Way, said: str) -> str:
    """The part of the message that names the way, found by the words of the command's own table around its values."""
    import importlib

    template = importlib.import_module(f"sherry_gguf.commands.{line[0]}").WAYS[way]
    found = re.search("(.+?)".join(re.escape(part) for part in re.split(r"\{\d\}", template)) + r"(?=;|$)", said)
    assert found, f"{template!r} is not in {said!r}"
    return found[0]


def followed(line: list[str], words: str, case: Case) -> list[str]:
    """The command line with what the words say: flags added or replaced, placeholders filled in."""
    flags = dict(FLAG.findall(words))
    for flag in case.drop:
        at = line.index(flag)
        line = line[:at] + line[at + 2 :]
    for flag, value in flags.items():
        if flag in case.drop and flag not in case.fill:
            continue
        if flag in SWITCHES:
            value = ""
        value = case.fill.get(flag, value.strip("'"))
        for placeholder, filling in case.fill.items():
            value = re.sub(rf"\b{placeholder}\b", lambda _, f=filling: f, value)
        if flag in line and flag != "--tensor-type":
            at = line.index(flag)
            line = line[:at] + line[at + 2 :]
        line = [*line, flag, *([value] if value else [])]
    return line


# What llama.cpp itself refuses, where it is built.
OF_RUNTIME = (a_file_that_does_not_load.__name__,)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.runtime if name in OF_RUNTIME else ()) for name in CASES]
)
def test_the_way_out_works(name, inputs, capsys, request):
    if name in OF_RUNTIME:
        request.getfixturevalue("runtime")
    case = CASES[name](inputs)
    capsys.readouterr()
    assert main(case.line) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    words = words_of(case.line, case.way, said)
    if case.way is Way.STATE_DICT:
        path, config = re.search(r"itself: (\S+) --config (\S+)$", words).groups()
        line = ["convert", path, "--config", config, *inputs.out()]
    elif case.way is Way.INSPECT:
        line = shlex.split(re.search("`sherry-gguf (.*)`", words)[1])
    elif case.way is Way.ALL_FIT:
        line = followed(case.line, words.split(" or ")[0], case)
    else:
        line = followed(case.line, words, case)
    assert main(line) == 0, capsys.readouterr().err
    if case.way is Way.KEEP_SCALES:
        w = load_file(Path(case.line[1]) / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
        kept = tensors_of(inputs.folder / "x.gguf")["blk.1.ffn_up.weight"].data
        assert np.allclose(np.abs(kept).max(axis=1) / np.abs(w.float().numpy()).max(axis=1), 0.35, atol=0.25)
        assert (kept == 0).sum() == kept.size // 4


def test_where_an_error_came_from(inputs, capsys):
    model = inputs.plain()
    for path in model.glob("tokenizer*"):
        path.write_text("{}")
    line = inputs.convert(model, "--allow-lossy")
    assert main(line) == 1
    words = words_of(line, Way.WHERE, capsys.readouterr().err)
    assert main([*line, *words.split()[:1]]) == 1
    assert "Traceback" in capsys.readouterr().err


# Followed where builds are tested, with a llama.cpp of a few lines: tests/llama_cpp.
OF_BUILDS = {Way.BUILD, Way.BUILD_TARGET, Way.BUILD_TESTS, Way.BUILD_PIN, Way.CHECKSUM, Way.GIVE_SDIST}

# Not followed: llama-gguf-split is no program of this project's build. Files as it writes them, parts and merged ones,
# are in tests/files/test_parts.py. A download needs a network; what is said without one is in
# tests/checkpoint/test_hub.py.
OF_OTHERS = {Way.MERGE, Way.DOWNLOAD}


def test_every_way_is_followed():
    tested = {Way.WHERE, Way.NO_TYPE, *OF_BUILDS, *OF_OTHERS}  # NO_TYPE says that there is no way
    source = Path(__file__).read_text(encoding="utf-8")
    tested |= {way for way in Way if re.search(rf"\bWay\.{way.name}\b(?=[,)\n])", source)}
    assert set(Way) == tested
    for command in (adapter_command, convert_command, requantize_command, retag_command, train_command):
        assert all("--" in words or "`" in words for words in command.WAYS.values())
    assert set(COMMANDS) >= {"adapter", "convert", "requantize", "retag", "train"}
