"""Which ``gguf`` is imported: the pin's, which upstream's converter needs, and not a package of the same version."""

from __future__ import annotations

import sys
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.tree import source


def use_pinned_gguf() -> None:
    """Make `import gguf` and `import conversion` load those of the pinned, patched tree (fetched if needed).

    Call it before either is imported; calling it again is harmless. Raises SherryError if another one was.
    """
    tree = source()
    homes = {"gguf": tree / "gguf-py", "conversion": tree}
    for name, home in homes.items():
        module = sys.modules.get(name)
        if module is not None and not Path(module.__file__ or "").resolve().is_relative_to(home):
            raise SherryError(
                f"{name} is already imported from {module.__file__}, but the one in {home} is needed: start a fresh "
                f"process, or call use_pinned_gguf() before anything imports {name}"
            )
    for entry in (str(tree), str(tree / "gguf-py")):
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path.insert(0, entry)
