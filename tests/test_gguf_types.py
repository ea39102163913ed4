"""SHERRY and Q2_0 in gguf-py: both the package from PyPI and the pinned one, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sherry_gguf import blocks
from sherry_gguf.errors import SherryError

ROUND_TRIP = """
import sys
import numpy as np
{imports}
from sherry_gguf import blocks

SHERRY = gguf.GGMLQuantizationType(512)
assert SHERRY is gguf.GGMLQuantizationType.SHERRY is gguf.GGMLQuantizationType["SHERRY"]
assert gguf.LlamaFileType(512).name == "MOSTLY_SHERRY"
assert gguf.GGML_QUANT_SIZES[SHERRY] == (128, 22)
codes = np.random.default_rng(0).integers(0, 32, (6, 64), dtype=np.uint8)
packed = blocks.pack(codes, np.full((6, 2), 0.5, dtype=np.float32))
weights = gguf.quants.dequantize(packed, SHERRY)
assert np.array_equal(gguf.quants.quantize(weights, SHERRY), packed)
assert np.array_equal(gguf.quants.quantize(weights.reshape(2, 3, 256), SHERRY), packed.reshape(2, 3, 44))

Q2_0 = gguf.GGMLQuantizationType(42)  # which PyPI's gguf lacks, and the pinned one cannot write
assert Q2_0.name == "Q2_0" and gguf.LlamaFileType(41).name == "MOSTLY_Q2_0" and gguf.GGML_QUANT_SIZES[Q2_0] == (64, 18)
assert np.array_equal(gguf.quants.dequantize(gguf.quants.quantize(weights, Q2_0), Q2_0), weights)

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_tensor("first", packed, raw_dtype=SHERRY)
writer.add_tensor("second", np.ones(3, dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
first, second = gguf.GGUFReader(sys.argv[1]).tensors
assert first.tensor_type is SHERRY and first.shape.tolist() == [256, 6] and first.n_bytes == packed.nbytes
assert np.array_equal(first.data, packed) and np.array_equal(second.data, [1, 1, 1])
print(gguf.__file__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import sherry_gguf, gguf",
        "import gguf, sherry_gguf",
        "from sherry_gguf import llama_cpp; llama_cpp.use_pinned_gguf(); import gguf",
    ],
    ids=["sherry first", "gguf first", "pinned"],
)
def test_reader_writer_and_quants(imports, tmp_path):
    code = ROUND_TRIP.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.gguf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("gguf-py" in done.stdout) == ("pinned" in imports)


def test_quantize_refuses_what_is_off_the_grid(pinned_gguf):
    weights = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    with pytest.raises(SherryError, match="not on SHERRY's grid"):
        pinned_gguf.quants.quantize(weights, pinned_gguf.GGMLQuantizationType.SHERRY)


def test_lazy_tensors(pinned_gguf):
    packed = blocks.pack(np.full((4, 64), 7, dtype=np.uint8), np.ones((4, 2), dtype=np.float32))
    lazy = pinned_gguf.LazyNumpyTensor.from_eager(blocks.dequantize(packed))
    promised = pinned_gguf.quants.quantize(lazy, pinned_gguf.GGMLQuantizationType.SHERRY)
    assert promised.shape == packed.shape
    assert np.array_equal(pinned_gguf.LazyNumpyTensor.to_eager(promised), packed)
