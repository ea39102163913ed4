"""What a block is: the only room that knows bytes.

    groups          four weights with one zero: their code, and which four weights of a row make a group (the grid)
    scales          fp16 scales: rounding them, and refusing what fp16 cannot hold
    planes          what blocks hold, as numbers
    tensor_type     the record that says everything in which types differ
    code_blocks     blocks of group codes, the layout that types of Sherry's own share
    sherry, sherry_g32, sherry_2p, stq1_0, tq1_0, tq2_0, q2_0, q4_0    one layout each, with its record
    i2_s            bitnet.cpp's types, of which one can be read
    table           all records, smallest type first
    registration    gguf-py, taught the types that it lacks

NumPy only. The C code is held to these files, bit by bit.
"""
