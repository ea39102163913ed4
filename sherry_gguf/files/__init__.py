"""GGUF files as they are found: what is in them, and changes that lose nothing.

    header      what a file says about itself, taken from its bytes
    tensor      a tensor, which knows its type and yields its weights
    identify    which type a tensor really has: ids lie, the spans of bytes do not
    gguf_file   a file opened: header and tensors
    i2_s        tensors of bitnet.cpp, in the layout that somebody names
    statistics  what a ternary tensor is like
    system      what systems do in different ways
    outfile     new files that are complete or absent
    rewrite     a file with other types for some tensors
    inspect     what a file holds
    retag       other type ids over the same bytes
    requantize  the same weights in other types

None of it needs the pinned llama.cpp, or opens a file with ``gguf.GGUFReader``, which trusts the ids.
"""
