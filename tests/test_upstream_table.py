"""The table of docs/upstream.md counts the patch set as it is."""

from __future__ import annotations

import re
import shutil

import pytest
import upstream_table

from sherry_gguf.llama_cpp.upstream import PatchSet


@pytest.fixture
def patches(repository, tmp_path):
    return PatchSet.load(shutil.copytree(repository / "ggml-patch", tmp_path / "patch"))


def test_the_page_has_the_table():
    page = upstream_table.PAGE.read_text(encoding="utf-8")
    assert upstream_table.table(PatchSet.load()) in page, "python scripts/upstream_table.py --write"


def test_all_lines_are_counted_once(patches):
    rows = upstream_table.rows(patches)
    columns = [[int(row[column].replace(",", "")) for row in rows] for column in (1, 2, 3)]
    texts = [patch.read_text(encoding="utf-8") for patch in patches.series]
    assert sum(columns[0]) == sum(len(re.findall("^@@ ", text, re.MULTILINE)) for text in texts)
    assert sum(columns[1]) == sum(
        line.startswith("+") and line[:4] != "+++ " for text in texts for line in text.split("\n")
    )
    assert sum(columns[2]) == sum(path.read_bytes().count(b"\n") for _, path in patches.files())


def test_tests_are_there(repository):
    for step in upstream_table.STEPS:
        there = [(repository / test).is_file() for test in step.tests]
        used = (
            any(upstream_table.matches(path.name, step.patches) for path in PatchSet.load().series) or not step.patches
        )
        assert all(there) or not used, step.what


def test_what_is_in_no_step_is_refused(patches):
    (patches.root / "files/ggml/src/other.c").write_text("\n")
    with pytest.raises(ValueError, match=r"ggml/src/other\.c is in 0 steps"):
        upstream_table.table(patches)


def test_another_table_takes_its_place():
    page = upstream_table.PAGE.read_text(encoding="utf-8")
    head = "| " + " | ".join(upstream_table.HEAD) + " |"
    assert upstream_table.replaced(page, f"{head}\n| x |").count("| x |\n") == 1
    with pytest.raises(ValueError, match="no such table"):
        upstream_table.replaced("nothing", "")
