"""Run 1.25-bit Sherry models with llama.cpp: lossless GGUF conversion, the ggml type, and the proof.

    convert_checkpoint  a trained checkpoint -> a GGUF file
    inspect_file        what a GGUF file holds
    load_tensors        its tensors, as NumPy arrays
    SherryError         the one exception for input that cannot be used as it is

What ``__all__`` has not is no public interface, and may change with any release. Importing this package teaches
``gguf`` the tensor types that it lacks, now or as soon as ``gguf`` is imported.
"""

from __future__ import annotations

from sherry_gguf import interrupt as interrupt  # before other imports, which it guards

# isort: split
from typing import TYPE_CHECKING, Any

from wrapt import when_imported as _when_imported

from sherry_gguf.errors import SherryError

if TYPE_CHECKING:
    from sherry_gguf.api import convert_checkpoint, inspect_file, load_tensors

__version__ = "0.2.0"
__all__ = ["SherryError", "__version__", "convert_checkpoint", "inspect_file", "load_tensors"]


def __getattr__(name: str) -> Any:
    """The functions, once they are asked for: converting needs PyTorch, whose import takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'sherry_gguf' has no attribute {name!r}")
    from sherry_gguf import api

    return getattr(api, name)


@_when_imported("gguf")
def _register(gguf: object) -> None:
    # Not an eager import: the converter has to put the pinned gguf-py on the path before any `import gguf`.
    from sherry_gguf.formats.registration import register

    register(gguf)
