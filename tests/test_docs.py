"""Every `sh` and `python` block of the documentation runs, in a folder that has what its commands name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

from sherry_gguf.weights.quantize import expand, quantize

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs/**", "convert/recipes", "scripts")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))])


# folders of the relatives' recipes
OTHERS = {"TriLM, unpacked": "trilm", "absmean, per channel": "absmean", "Falcon3-1.58bit, packed": "falcon"}


def commands(page: Path, language: str = "sh") -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


@pytest.fixture
def folder(request, tmp_path, tiny_checkpoint, heldout_text):
    """model/: latents; baked/ and baked_fake_quant_model.pt: these, baked; text.txt; of OTHERS what the page names"""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    shutil.copytree(tiny_checkpoint, tmp_path / "baked")
    shutil.copy(heldout_text, tmp_path / "text.txt")
    state = load_file(tiny_checkpoint / "model.safetensors")
    for name, weights in state.items():
        if name.endswith("_proj.weight"):
            grid = quantize(weights.float().numpy())
            state[name] = torch.from_numpy(expand(grid.codes, grid.scales)).bfloat16()
    save_file(state, tmp_path / "baked" / "model.safetensors")
    torch.save(state, tmp_path / "baked_fake_quant_model.pt")
    for family in families.FAMILIES:
        name = OTHERS.get(family.name)
        if name is not None and name in commands(request.node.callspec.params["page"]):
            families.rewrite(tiny_checkpoint, tmp_path / name, family.change, **family.keys)
    return tmp_path


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_run(page, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(page)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.usefixtures("pinned_gguf")  # its source is fetched, which a conversion needs
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p, "python")], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_runs(page, folder):
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", commands(page, "python")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"
