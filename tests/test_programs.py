"""The programs that users call, on the converted file: they load it, compute, and say what it is."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request

import pytest
from serving import served

pytestmark = pytest.mark.runtime

PROMPT = "My fellow citizens, the state of the"
PIPED_RUNS = 60
FEW = ("-n", 24, "--temp", 0, "-t", 1)  # threads that spin take long on a busy machine


def run(*command, timeout=300):
    return subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )


def test_llama_cli_answers_one_turn(runtime, sherry_gguf_file):
    cli = runtime.program("llama-cli")
    done = run(cli, "-m", sherry_gguf_file, "-p", PROMPT, "-n", 16, "--seed", 1, "--single-turn")
    assert done.returncode == 0, done.stderr[-2000:]
    answer = re.search(re.escape(PROMPT) + r"\n(.*)\[ Prompt:", done.stdout, re.DOTALL)
    assert answer is not None, done.stdout
    assert len(re.findall(r"\w+", answer[1])) > 4


def complete(runtime, file, *options):
    done = run(runtime.program("llama-completion"), "-m", file, "-p", PROMPT, "-no-cnv", "-v", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "eval time" in done.stderr, done.stderr[-2000:]  # among the last lines of its log
    return done


def test_llama_completion_goes_on(runtime, sherry_gguf_file):
    first = complete(runtime, sherry_gguf_file, *FEW)
    assert len(re.findall(r"\w+", first.stdout.split(PROMPT, 1)[1])) > 8
    assert "SHERRY - 1.375 bpw" in first.stderr
    assert re.search(r"type sherry: +42 tensors", first.stderr)
    # the text is written by the log's thread, which the program once did not wait for
    for _ in range(PIPED_RUNS):
        assert complete(runtime, sherry_gguf_file, *FEW).stdout == first.stdout


def test_llama_perplexity_gives_its_result(runtime, sherry_gguf_file, heldout_text):
    results = set()
    for _ in range(PIPED_RUNS // 3):
        fixed = ("-m", sherry_gguf_file, "-f", heldout_text, "--chunks", 4, "-c", 128, "-t", 1)
        done = run(runtime.program("llama-perplexity"), *fixed)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Final estimate: PPL = " in done.stderr
        results.add(re.sub(r"[\d.]+ (seconds|minutes)", "", done.stdout))
    (result,) = results
    assert re.search(r"\[4\][\d.]+,\n\n$", result)


def test_llama_bench_measures(runtime, sherry_gguf_file):
    done = run(runtime.program("llama-bench"), "-m", sherry_gguf_file, "-p", 32, "-n", 4, "-r", 1, "-o", "json")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert [(r["n_prompt"], r["n_gen"]) for r in results] == [(32, 0), (0, 4)]
    assert all(r["avg_ts"] > 0 for r in results)
    assert "SHERRY - 1.375 bpw" in results[0]["model_type"]


def test_llama_server_completes_over_http(runtime, sherry_gguf_file, tmp_path):
    with served(runtime, sherry_gguf_file, tmp_path / "server.log") as address:
        body = json.dumps({"prompt": PROMPT, "n_predict": 8, "temperature": 0}).encode()
        request = urllib.request.Request(f"{address}/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    assert answer["tokens_predicted"] == 8
    assert answer["content"].strip()
