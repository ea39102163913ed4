"""The bytes tell which type a tensor has; ids 42, 43, 253 and private ones do not."""

from __future__ import annotations

import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.identify import upstream_types


def names(path):
    return [tensor.type_name for tensor in open_gguf(path).tensors]


def problems(path):
    return [tensor.problem for tensor in open_gguf(path).tensors]


def test_upstream_types_are_those_of_the_pin(pinned_gguf):
    """Ids 0 to 42 but for those of types that were removed."""
    holes = {4, 5, 31, 32, 33, 36, 37, 38}
    assert set(upstream_types()) == set(range(43)) - holes
    for type_id, kind in upstream_types().items():
        qtype = pinned_gguf.GGMLQuantizationType(type_id)
        assert (kind.name, (kind.block, kind.block_bytes)) == (qtype.name, pinned_gguf.GGML_QUANT_SIZES[qtype])


@pytest.mark.parametrize("alignment", [32, 64, 128])
@pytest.mark.parametrize("type_id", [42, 43, 253])
def test_stq1_0_under_all_its_ids(build, parts, type_id, alignment):
    tensors = [
        ("a", (512, 4), type_id, parts.stq1_0_blocks(4, 512)),
        ("norm", (7,), 0, parts.f32(1, 7)),
        ("b", (256, 16), type_id, parts.stq1_0_blocks(16, 256)),
    ]
    assert names(build(tensors, alignment=alignment)) == ["STQ1_0", "F32", "STQ1_0"]


@pytest.mark.parametrize("alignment", [32, 64, 128])
def test_q2_0_stays_q2_0(build, parts, alignment):
    tensors = [("a", (512, 4), 42, parts.q2_0_blocks(4, 512)), ("b", (64, 3), 42, parts.q2_0_blocks(3, 64))]
    assert names(build(tensors, alignment=alignment)) == ["Q2_0", "Q2_0"]


def test_both_in_one_file_under_two_ids(build, parts):
    tensors = [("a", (512, 4), 42, parts.q2_0_blocks(4, 512)), ("b", (512, 4), 43, parts.stq1_0_blocks(4, 512))]
    assert names(build(tensors)) == ["Q2_0", "STQ1_0"]


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 8])
def test_up_to_alignment_64_every_tensor_decides(build, parts, alignment, n_blocks):
    for content, name in ((parts.stq1_0_blocks(n_blocks, 256), "STQ1_0"), (parts.q2_0_blocks(n_blocks, 256), "Q2_0")):
        assert names(build([("a", (256, n_blocks), 42, content)], alignment=alignment)) == [name]


def test_small_tensors_do_not_decide_at_alignment_128(build, parts):
    """42 and 72 bytes are both padded to 128; another tensor of the file decides for both, or nothing does."""
    small = ("small", (256,), 42, parts.stq1_0_blocks(1, 256))
    path = build([small], alignment=128)
    assert names(path) == [None]
    with pytest.raises(SherryError, match=r"x\.gguf: small: nothing tells Q2_0 from STQ1_0.*id 42, 128 bytes"):
        open_gguf(path).require_types()
    for content, name in ((parts.stq1_0_blocks(8, 256), "STQ1_0"), (parts.q2_0_blocks(8, 256), "Q2_0")):
        assert names(build([small, ("large", (256, 8), 42, content)], alignment=128)) == [name, name]


def test_contradicting_tensors(build, parts):
    tensors = [
        ("a", (512, 4), 42, parts.stq1_0_blocks(4, 512)),
        ("b", (512, 4), 42, parts.q2_0_blocks(4, 512)),
        ("c", (512, 4), 42, bytes(4096)),
    ]
    path = build(tensors)
    assert names(path) == [None, None, None]
    first, second, third = problems(path)
    assert first.startswith("is STQ1_0, and others of that id are not (id 42, 352 bytes with padding: ")
    assert second.startswith("is Q2_0, and others of that id are not (id 42, 576 bytes with padding: ")
    assert third == (
        "its bytes are not of its id's type (id 42, 4,096 bytes with padding: "
        "Q2_0 needs 576, STQ1_0 needs 352, SHERRY needs 352, SHERRY_G32 needs 448, SHERRY_2P needs 704)"
    )
    with pytest.raises(SherryError, match="a: is STQ1_0"):
        open_gguf(path).require_types()


@pytest.mark.parametrize("type_id", [43, 253])
def test_q2_0_under_an_id_of_stq1_0(build, parts, type_id):
    path = build([("a", (512, 8), type_id, parts.q2_0_blocks(8, 512))])
    assert names(path) == [None]
    assert f"id {type_id}, 1,152 bytes with padding: Q2_0 needs 1,152, STQ1_0 needs 672" in problems(path)[0]


@pytest.mark.parametrize("type_id", [43, 100, 512, 777])
def test_sherry_under_private_ids(build, parts, type_id):
    tensors = [
        ("a", (384, 8), type_id, parts.sherry_blocks(8, 384)),
        ("b", (256,), type_id, parts.sherry_blocks(1, 256)),
    ]
    assert names(build(tensors)) == ["SHERRY", "SHERRY"]


@pytest.mark.parametrize("type_id", [43, 100, 512, 520, 777])
def test_sherry_g32_under_private_ids(build, parts, type_id):
    tensors = [
        ("a", (96, 8), type_id, parts.sherry_g32_blocks(8, 96)),
        ("b", (256, 4), type_id, parts.sherry_g32_blocks(4, 256)),
    ]
    assert names(build(tensors)) == ["SHERRY_G32", "SHERRY_G32"]


@pytest.mark.parametrize("type_id", [43, 100, 512, 521, 777])
def test_sherry_2p_under_private_ids(build, parts, type_id):
    tensors = [("a", (384, 8), type_id, parts.sherry_2p_blocks(8, 384))]
    assert names(build(tensors)) == ["SHERRY_2P"]


def test_both_types_of_neighbours_in_one_file(build, parts):
    tensors = [
        ("a", (512, 8), 512, parts.sherry_blocks(8, 512)),
        ("b", (512, 8), 520, parts.sherry_g32_blocks(8, 512)),
    ]
    assert names(build(tensors)) == ["SHERRY", "SHERRY_G32"]


@pytest.mark.parametrize(("type_id", "found"), [(512, "SHERRY"), (520, "SHERRY_G32"), (100, None)])
def test_tensors_that_are_as_large_in_both_types(build, parts, type_id, found):
    """22 and 28 bytes are both padded to 32: what the id says counts, and nobody's id says nothing."""
    blocks = parts.sherry_g32_blocks if type_id == 520 else parts.sherry_blocks
    assert names(build([("a", (128,), type_id, blocks(1, 128)), ("b", (4,), 0, parts.f32(1, 4))])) == [found, "F32"]


def test_stq1_0_as_512(build, parts):
    path = build([("a", (512, 8), 512, parts.stq1_0_blocks(8, 512))])
    assert names(path) == [None]
    assert "STQ1_0 needs 672, SHERRY needs 704" in problems(path)[0]


def test_an_unknown_id_is_not_guessed(build, parts):
    """Neither where the size is another type's, nor where STQ1_0 would fit as well as SHERRY."""
    other = ("a", (256, 8), 97, bytes(1024))
    either = ("b", (256,), 98, parts.sherry_blocks(1, 256))
    path = build([other, either])
    assert names(path) == [None, None]
    assert problems(path) == [None, None]


def test_the_last_tensor_may_lack_its_padding(build, parts):
    content = parts.gguf_bytes([("a", (256, 3), 42, parts.stq1_0_blocks(3, 256))])
    path = build([])
    path.write_bytes(content[:-2])
    assert names(path) == ["STQ1_0"]
    path.write_bytes(content[:-3])
    with pytest.raises(SherryError, match=r"a has 125 bytes, and needs 126 .*is it truncated"):
        open_gguf(path)


@pytest.mark.parametrize("type_id", [42, 43, 512])
def test_a_truncated_tensor_of_an_id_that_lies(build, parts, type_id):
    """The others tell what it should be."""
    blocks = parts.sherry_blocks if type_id == 512 else parts.stq1_0_blocks
    path = build([(name, (256, 8), type_id, blocks(8, 256)) for name in ("a", "b", "c")])
    path.write_bytes(path.read_bytes()[:-32])
    with pytest.raises(SherryError, match=r"c has .* bytes, and needs .*is it truncated"):
        open_gguf(path)


def test_a_gap_is_a_problem(build, parts):
    path = build([("a", (4,), 0, parts.f32(1, 4) + bytes(32)), ("b", (4,), 0, parts.f32(1, 4))])
    assert problems(path) == ["a gap (id 0, 64 bytes with padding: F32 needs 32)", None]


def test_rows_that_are_no_whole_blocks(build):
    path = build([("a", (16, 4), 8, bytes(68))])
    assert problems(path) == ["rows of 16 weights are no whole Q8_0 blocks of 32"]
