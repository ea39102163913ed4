"""The runtime: the pinned llama.cpp, fetched, patched and built in the user's cache.

    source()           the pin's patched tree, fetched on first use
    find_source()      the patched tree of what `sherry-gguf build` made; the pin's before
    build()            its programs and libraries, compiled on first use
    install()          those that another machine built, out of an archive
    find_build()       the build that `sherry-gguf build` made, if it is up to date
    use_pinned_gguf()  makes `import gguf` and `import conversion` load those of find_source()

Nothing here is compiled or downloaded at import.
"""

from __future__ import annotations

from sherry_gguf.llama_cpp.builds import Build, build, find_build, find_source, install
from sherry_gguf.llama_cpp.gguf_path import use_pinned_gguf
from sherry_gguf.llama_cpp.tree import source

__all__ = ["Build", "build", "find_build", "find_source", "install", "source", "use_pinned_gguf"]
