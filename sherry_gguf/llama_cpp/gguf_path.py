"""Which ``gguf`` is imported: the patched tree's, which upstream's converter needs, and no other."""

from __future__ import annotations

import sys
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.builds import find_source


def use_pinned_gguf() -> None:
    """Make `import gguf` and `import conversion` load those of the patched tree that `sherry-gguf build` was asked for.

    That is the pin's, fetched if needed, unless a checkout was built or an archive taken last.

    Call it before either is imported; calling it again is harmless. Raises SherryError if another one was.
    """
    tree = find_source()
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
