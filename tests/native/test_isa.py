"""Which instructions there are is asked in isa.h, and intrinsics stand in the files of an instruction set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FEATURE = re.compile(r"\b(?:__(?:AMX|AVX|FMA|F16C|SSE|ARM_|aarch64|x86_64|i386)\w*|_M_(?:ARM|X64|IX86)\w*)")
INTRINSIC = re.compile(
    r"#\s*include\s*[<\"](?:\w*intrin|arm_\w+)\.h|\b_mm\d*_\w+|\b_tile_\w+|\b__m\d+|\bu?(?:int|float)\d+x\d+"
)
OF_A_SET = re.compile(r"(?:row|tile|pack)-(?:avx2|avx512|avx512vbmi|amx|neon|x86)\.[ch]")
GUARD = re.compile(r"\bSHERRY_ISA_\w+")


@pytest.fixture
def kernels(repository: Path) -> dict[str, str]:
    """The code of the folder's files, without comments."""
    folder = repository / "ggml-patch/files/ggml/src/ggml-cpu/sherry"
    return {path.name: re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in folder.iterdir()}


def found(pattern: re.Pattern[str], files: dict[str, str]) -> dict[str, list[str]]:
    matches = {name: pattern.findall(code) for name, code in files.items()}
    return {name: some for name, some in matches.items() if some}


def test_features_are_asked_for_in_one_file(kernels: dict[str, str]) -> None:
    assert list(found(FEATURE, kernels)) == ["isa.h"]


def test_intrinsics_are_in_the_files_of_a_set(kernels: dict[str, str]) -> None:
    sets = {name for name in kernels if OF_A_SET.fullmatch(name)}
    assert found(INTRINSIC, kernels).keys() == sets


def test_a_guard_is_defined_once_and_used(kernels: dict[str, str]) -> None:
    """A misspelt one would leave a kernel out, and nobody would see."""
    defined = re.findall(r"#define (SHERRY_ISA_\w+)", kernels.pop("isa.h"))
    assert sorted(defined) == sorted({guard for code in kernels.values() for guard in GUARD.findall(code)})
    files = {name: code for name, code in kernels.items() if OF_A_SET.fullmatch(name)}
    for name, code in files.items():
        includes, guard, _ = code.partition("#if defined(SHERRY_ISA_")
        assert guard, name
        assert re.fullmatch(r'(?:\s|#pragma once|#include "[\w.-]+")*', includes), name
        assert code.rstrip().endswith("#endif"), name
