"""What ``sherry-gguf COMMAND`` does: flags in, calls to the rooms above, text out. Nothing imports a command.

convert, build, which, train, inspect, retag, requantize, parity    one module each, with configure() and execute()
source_flags        how a checkpoint is read, for all commands that read one
ways_out            ways out of a refusal, as flags
inspection_tables   an inspection, for a person
"""
