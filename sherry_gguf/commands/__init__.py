"""What ``sherry-gguf COMMAND`` does: flags in, calls to the rooms above, text out. No room imports a command.

convert, build, which, train, adapter, inspect, report, retag, requantize, parity, completion    one module each,
                    with configure() and execute()
help_page           what ``--help`` looks like, for all commands
source_flags        how a checkpoint is read, for all commands that read one
ways_out            ways out of a refusal, as flags
inspection_tables   an inspection, for a person
"""

# command -> its summary; its module is imported only when it is asked for
COMMANDS = {
    "convert": "convert a Sherry checkpoint to GGUF",
    "build": "fetch, patch and build the pinned llama.cpp",
    "which": "print the path of a built program or of the patched source",
    "train": "train a Sherry model (needs the extra `train`)",
    "adapter": "make a sparse ternary adapter of a LoRA (needs the extra `adapter`)",
    "inspect": "show what a GGUF file holds, and whether llama.cpp reads it",
    "report": "write one page about a GGUF file, with charts",
    "retag": "change the type ids of a GGUF's Sherry tensors",
    "requantize": "store a GGUF's ternary tensors in another type, exactly",
    "parity": "compare a GGUF in llama.cpp with its checkpoint in PyTorch",
    "completion": "print a script that completes commands and flags in a shell",
}

EXTRAS = ("train", "adapter")  # commands whose dependencies are an extra of their name
