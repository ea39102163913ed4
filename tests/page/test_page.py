"""The page's numbers are those of the file, as `inspect` has them, and a browser shows them without a network."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from browser import find_chromium

from sherry_gguf.cli import main
from sherry_gguf.files.inspect import as_json, inspect
from sherry_gguf.page.sizes import sizes

TOTAL = {
    "positions": 1020, "base_perplexity": 49.5, "other_perplexity": 49.25, "kld_mean": 0.00025, "same_top1": 0.9875,
}  # fmt: skip
PARITY = {"text": "held/out.txt", "ok": True, "total": TOTAL, "weights": {"weights": 4718592, "wrong_weights": 0}}
ROW = {"type": "SHERRY", "model": "x.gguf", "test": "tg16", "tok_s": 250.0, "share_of_limit": 0.5}
BENCH = {
    "machine": {"cpu": "A <Processor>"},
    "limits": {"dram_gb_s": 20.5, "int8_gmac_s": 300.25, "threads": 2},
    "results": [ROW, {**ROW, "type": "TQ2_0", "tok_s": 125.0, "share_of_limit": 0.25}],
}


@pytest.fixture(scope="module")
def page(sherry_gguf_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "parity.json").write_text(json.dumps(PARITY))
    (folder / "bench.json").write_text(json.dumps(BENCH))
    measured = ["--parity", str(folder / "parity.json"), "--bench", str(folder / "bench.json")]
    assert main(["report", str(sherry_gguf_file), *measured, "--out", str(folder / "page.html")]) == 0
    return folder / "page.html"


def numbers(html):
    """id -> value of every <data>"""
    found = re.findall(r'<data id="([^"]+)" value="([^"]+)">', html)
    assert len(dict(found)) == len(found), "an id is there twice"
    return {name: float(value) for name, value in found}


@pytest.fixture(scope="module")
def expected(sherry_gguf_file):
    """Of the file, by inspect's own JSON."""
    said = as_json(inspect(sherry_gguf_file))
    codes = [sum(t["ternary"]["codes"][code] for t in said["tensors"] if "ternary" in t) for code in range(32)]
    zeros = [sum(codes[code] for code in range(32) if code >> 2 & 3 == place) for place in range(4)]
    scales = {
        f"scale-{t['name'].split('.')[1]}-{t['name'].split('.')[2]}": t["ternary"]["scales"]["median"]
        for t in said["tensors"]
        if "ternary" in t
    }
    assert len(scales) == 42
    return {
        "bytes": said["bytes"], "weights": said["all"]["weights"], "tensors": said["all"]["tensors"],
        "bits-per-weight": said["all"]["bits_per_weight"], "total-0": said["all"]["bytes"], "groups": sum(codes),
        **{f"type-{t['id']}-bytes": t["bytes"] for t in said["types"]},
        **{f"code-{code}": n for code, n in enumerate(codes)}, **{f"zero-{place}": n for place, n in enumerate(zeros)},
        **scales,
        "perplexity": 49.25, "perplexity-torch": 49.5, "kld": 0.00025, "top-1": 0.9875,
        "rate-0": 250, "limit-0": 500, "rate-1": 125, "limit-1": 500,
    }  # fmt: skip


def test_the_numbers_are_those_of_the_file(page, expected):
    shown = numbers(page.read_text(encoding="utf-8"))
    assert {name: shown.get(name) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert shown["entropy"] == pytest.approx(5, abs=0.01)
    assert sum(shown[f"size-0-{n}"] for n in range(5)) == shown["total-0"]


def test_nothing_is_loaded_and_names_are_escaped(page):
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|<script""", html)
    assert "A &lt;Processor&gt;" in html
    assert all('aria-label="' in svg for svg in re.findall(r"<svg[^>]*>", html))


def test_a_browser_shows_them(page, expected, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run([find_chromium(), *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = numbers(done.stdout)
    assert {name: shown.get(name) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert done.stdout.count("<svg") == 6  # sizes, zeros, codes, codes and scales by layer, tg16


@pytest.mark.runtime
def test_other_sizes_are_those_that_llama_quantize_writes(runtime, tiny_checkpoint, sherry_gguf_file, tmp_path):
    from sherry_gguf.convert import TypeChoice, convert

    f16 = convert(tiny_checkpoint, tmp_path / "f16.gguf", types=TypeChoice(overrides=((".*", "f16"),))).outfile
    q4 = tmp_path / "q4.gguf"
    program = runtime.program("llama-quantize")
    subprocess.run([program, f16, q4, "Q4_K_M"], check=True, capture_output=True)
    guessed = sizes([inspected.tensor for inspected in inspect(sherry_gguf_file).tensors])
    for label, path in (("F16", f16), ("Q4_K_M", q4)):
        written = sizes([inspected.tensor for inspected in inspect(path).tensors])["this file"]
        assert guessed[label] == written


@pytest.mark.parametrize(
    ("flag", "content", "said"),
    [
        ("--parity", "no", "is no JSON"),
        ("--parity", "[]", "has not the finite figures"),
        ("--parity", json.dumps({**PARITY, "total": {**TOTAL, "kld_mean": None}}), "has not the finite figures"),
        ("--bench", json.dumps(PARITY), "has not the figures that scripts/bench_llama.py writes"),
        ("--bench", json.dumps({**BENCH, "results": [{**ROW, "test": "x"}]}), "has not the figures"),
    ],
)
def test_other_files_are_refused(flag, content, said, sherry_gguf_file, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert main(["report", str(sherry_gguf_file), flag, str(tmp_path / "x.json"), "--out", str(tmp_path / "p")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_an_existing_page_is_kept(page, sherry_gguf_file, capsys):
    before = page.read_bytes()
    assert main(["report", str(sherry_gguf_file), "--outfile", str(page)]) == 1
    assert "replace it with --force" in capsys.readouterr().err
    assert page.read_bytes() == before
