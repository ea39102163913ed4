"""The types that gguf-py lacks: both the package from PyPI and the pinned one, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry

ROUND_TRIP = """
import sys
import numpy as np
{imports}
from sherry_gguf.formats import sherry, sherry_2p, sherry_g32, stq1_0

SHERRY = gguf.GGMLQuantizationType(512)
assert SHERRY is gguf.GGMLQuantizationType.SHERRY is gguf.GGMLQuantizationType["SHERRY"]
assert gguf.LlamaFileType(512).name == "MOSTLY_SHERRY"
assert gguf.GGML_QUANT_SIZES[SHERRY] == (128, 22)
codes = np.random.default_rng(0).integers(0, 32, (6, 64), dtype=np.uint8)
packed = sherry.BLOCKS.pack(codes, np.full((6, 2), 0.5, dtype=np.float32))
weights = gguf.quants.dequantize(packed, SHERRY)
assert np.array_equal(gguf.quants.quantize(weights, SHERRY), packed)
assert np.array_equal(gguf.quants.quantize(weights.reshape(2, 3, 256), SHERRY), packed.reshape(2, 3, 44))

G32 = gguf.GGMLQuantizationType(520)
assert G32 is gguf.GGMLQuantizationType.SHERRY_G32 and gguf.LlamaFileType(520).name == "MOSTLY_SHERRY_G32"
assert gguf.GGML_QUANT_SIZES[G32] == (32, 7)
g32 = sherry_g32.BLOCKS.pack(codes[:, :24], np.full((6, 3), 0.5, dtype=np.float32))
assert np.array_equal(gguf.quants.dequantize(g32, G32), weights[:, :96])
assert np.array_equal(gguf.quants.quantize(weights[:, :96].reshape(2, 3, 96), G32), g32.reshape(2, 3, 21))

TWO = gguf.GGMLQuantizationType(521)
assert TWO is gguf.GGMLQuantizationType.SHERRY_2P and gguf.LlamaFileType(521).name == "MOSTLY_SHERRY_2P"
assert gguf.GGML_QUANT_SIZES[TWO] == (128, 44)
scales = np.full((6, 2), 0.5, dtype=np.float16)
two = sherry_2p.pack_planes(codes, codes[::-1], scales, scales / 4)
sums = weights + weights[::-1] / 4
assert np.array_equal(gguf.quants.dequantize(two, TWO), sums)
assert np.array_equal(gguf.quants.quantize(sums.reshape(2, 3, 256), TWO), two.reshape(2, 3, 88))

STQ1_0 = gguf.GGMLQuantizationType(43)
assert STQ1_0 is gguf.GGMLQuantizationType.STQ1_0 and gguf.LlamaFileType(513).name == "MOSTLY_STQ1_0"
assert gguf.GGML_QUANT_SIZES[STQ1_0] == (256, 42)
stq = stq1_0.BLOCKS.pack(codes, np.full((6, 1), 0.5, dtype=np.float32))
assert np.array_equal(gguf.quants.dequantize(stq, STQ1_0), stq1_0.STQ1_0.dequantize(stq))
read = stq1_0.STQ1_0.dequantize(stq).reshape(2, 3, 256)
assert np.array_equal(gguf.quants.quantize(read, STQ1_0), stq.reshape(2, 3, 42))

Q2_0 = gguf.GGMLQuantizationType(42)  # which PyPI's gguf lacks, and the pinned one cannot write
assert Q2_0.name == "Q2_0" and gguf.LlamaFileType(41).name == "MOSTLY_Q2_0" and gguf.GGML_QUANT_SIZES[Q2_0] == (64, 18)
assert np.array_equal(gguf.quants.dequantize(gguf.quants.quantize(weights, Q2_0), Q2_0), weights)

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_tensor("first", packed, raw_dtype=SHERRY)
writer.add_tensor("second", np.ones(3, dtype=np.float32))
writer.add_tensor("third", stq, raw_dtype=STQ1_0)
writer.add_tensor("fourth", g32, raw_dtype=G32)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
first, second, third, fourth = gguf.GGUFReader(sys.argv[1]).tensors
assert first.tensor_type is SHERRY and first.shape.tolist() == [256, 6] and first.n_bytes == packed.nbytes
assert np.array_equal(first.data, packed) and np.array_equal(second.data, [1, 1, 1])
assert third.tensor_type is STQ1_0 and third.shape.tolist() == [256, 6] and np.array_equal(third.data, stq)
assert fourth.tensor_type is G32 and fourth.shape.tolist() == [96, 6] and np.array_equal(fourth.data, g32)
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


TAKEN = """
import enum, gguf
class GGMLQuantizationType(enum.IntEnum):
    Q8_0 = 8
    ANOTHER = 43
gguf.GGMLQuantizationType = GGMLQuantizationType
from sherry_gguf.formats.registration import _add_type
from sherry_gguf.formats.stq1_0 import STQ1_0
_add_type(gguf, STQ1_0)
assert GGMLQuantizationType(43).name == "ANOTHER" and "STQ1_0" not in GGMLQuantizationType.__members__
"""


def test_an_id_that_gguf_py_has_for_another_type_stays_that_types():
    done = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0"])
def test_quantize_refuses_what_is_not_baked(pinned_gguf, name):
    weights = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    with pytest.raises(SherryError, match=f"weights do not fit {name}"):
        pinned_gguf.quants.quantize(weights, pinned_gguf.GGMLQuantizationType[name])


def test_lazy_tensors(pinned_gguf):
    packed = sherry.BLOCKS.pack(np.full((4, 64), 7, dtype=np.uint8), np.ones((4, 2), dtype=np.float32))
    lazy = pinned_gguf.LazyNumpyTensor.from_eager(sherry.SHERRY.dequantize(packed))
    promised = pinned_gguf.quants.quantize(lazy, pinned_gguf.GGMLQuantizationType.SHERRY)
    assert promised.shape == packed.shape
    assert np.array_equal(pinned_gguf.LazyNumpyTensor.to_eager(promised), packed)
