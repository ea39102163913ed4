"""Run 1.25-bit Sherry models with llama.cpp: lossless GGUF conversion, the ggml type, and the proof.

Importing this package teaches ``gguf`` the tensor types that it lacks, now or as soon as ``gguf`` is imported.
"""

from __future__ import annotations

from wrapt import when_imported

from sherry_gguf.errors import SherryError

__version__ = "0.1.0"
__all__ = ["SherryError", "__version__"]


@when_imported("gguf")
def _register(gguf: object) -> None:
    # Not an eager import: the converter has to put the pinned gguf-py on the path before any `import gguf`.
    from sherry_gguf.formats.registration import register

    register(gguf)
