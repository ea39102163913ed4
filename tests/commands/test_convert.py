"""The converter as people call it: one line for a mistake, a status that scripts can use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(*arguments, cwd=None):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(params=["-m sherry_gguf.convert", "-m sherry_gguf convert", "front door"])
def command(request, repository):
    if request.param == "front door":
        return [repository / "convert" / "convert_sherry_to_gguf.py"]
    return request.param.split()


def test_converts_and_says_so(command, tiny_checkpoint, tmp_path, sherry_gguf_file):
    outfile = tmp_path / "out" / "x.gguf"
    outfile.parent.mkdir()
    done = run(*command, tiny_checkpoint, "--outfile", outfile, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "42 latent Sherry layers, scales per_group 128" in done.stdout
    assert "feed-forward" in done.stdout
    assert "1.375" in done.stdout
    assert "verified: 42 SHERRY tensors" in done.stdout
    assert outfile.read_bytes() == sherry_gguf_file.read_bytes()


def test_another_type_for_the_sherry_layers(tiny_checkpoint, tmp_path):
    outfile = tmp_path / "x.gguf"
    done = run("-m", "sherry_gguf.convert", tiny_checkpoint, "--outfile", outfile, "--outtype", "Q2_0")
    assert done.returncode == 0, done.stderr
    assert "verified: 42 Q2_0 tensors" in done.stdout
    assert "slow on x86" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent: no such file or directory"),
        (["MODEL", "--granularity", "per_channel", "--group-size", "64"], "--group-size belongs to per_group"),
        (["MODEL", "--group-size", "-1"], "positive group size, got -1"),
        (["MODEL", "--group-size", "0"], "positive group size, got 0"),
        (["MODEL", "--tensor-type", "ffn"], "'ffn' is not REGEX=TYPE"),
        (["MODEL", "--output-tensor-type", "q9"], "'q9' is no type"),
        (["MODEL", "--outtype", "f16"], "'f16' is no type for Sherry layers"),
        (["MODEL", "--outtype", "tq2_0"], "weights do not fit TQ2_0 and would change"),
        (["MODEL", "--sherry-layers", "("], "no regular expression"),
        (["MODEL", "--group-size", "96"], "group_size 96 does not divide rows of 256"),
        (["MODEL", "--outfile", "absent/x.gguf"], "absent is no directory"),
        (["MODEL", "--jobs", "0"], "--jobs is a number from 1 on"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tiny_checkpoint, tmp_path):
    arguments = [tiny_checkpoint if argument == "MODEL" else argument for argument in arguments]
    done = run("-m", "sherry_gguf.convert", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("llama.cpp's converter:")]
    assert line.startswith("sherry-gguf convert: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_verbose_shows_where_an_error_came_from(tmp_path):
    done = run("-m", "sherry_gguf.convert", "absent", "--verbose", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "sherry-gguf convert: error: absent: no such file or directory"


@pytest.mark.parametrize("name", ["a[bold]/o[red].gguf", "x[/y]/:heart:.gguf"])
def test_names_are_no_markup(name, tiny_checkpoint, tmp_path):
    outfile = tmp_path / name
    outfile.parent.mkdir(parents=True)
    done = run("-m", "sherry_gguf.convert", tiny_checkpoint, "--outfile", outfile, "--no-verify")
    assert done.returncode == 0, done.stderr
    assert f"wrote {outfile}\n" in done.stdout


def test_bad_usage_is_argparse(tmp_path):
    assert run("-m", "sherry_gguf", "transmute", cwd=tmp_path).returncode == 2
    assert run("-m", "sherry_gguf.convert", cwd=tmp_path).returncode == 2
    for arguments in (["--help"], ["convert", "--help"], ["--version"]):
        assert run("-m", "sherry_gguf", *arguments, cwd=tmp_path).returncode == 0


def test_dry_run(tiny_checkpoint, tmp_path):
    done = run("-m", "sherry_gguf.convert", tiny_checkpoint, "--outfile", "x.gguf", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "dry run: nothing written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_json_is_one_object(tiny_checkpoint, tmp_path):
    done = run("-m", "sherry_gguf.convert", tiny_checkpoint, "--outfile", tmp_path / "x.gguf", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["output"] == said["files"][0] == str(tmp_path / "x.gguf")
    assert said["verdict"].startswith("verified: 42 SHERRY tensors")
    assert said["types"]["SHERRY"]["bits_per_weight"] == 1.375
    assert said["tensors"] == sum(found["tensors"] for found in said["types"].values()) == 56
    assert said["bytes"] == sum(found["bytes"] for found in said["types"].values())
    assert said["bytes"] <= (tmp_path / "x.gguf").stat().st_size
    assert 0 < said["seconds"] < 300
    assert not said["dry_run"]


def test_quiet_says_nothing(tiny_checkpoint, tmp_path):
    line = ("-m", "sherry_gguf.convert", tiny_checkpoint, "--quiet", "--outfile", "x.gguf")
    done = run(*line, "--outtype", "q2_0", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(*line, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_parts_and_a_vocabulary(tiny_checkpoint, tmp_path):
    line = ("-m", "sherry_gguf.convert", tiny_checkpoint, "--outfile", "x.gguf", "--no-verify")
    done = run(*line, "--split-max-size", "700K", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert len(parts) > 1
    assert "".join(f"wrote {name}\n" for name in parts) in done.stdout
    done = run(*line, "--vocab-only", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4,096 tokens, no weights" in done.stdout
