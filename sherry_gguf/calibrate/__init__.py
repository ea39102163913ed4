"""Any model -> matrices of one or two planes of Sherry, chosen on a text (``docs/calibration.md``).

    text      windows of tokens
    decoder   a model of transformers, one decoder layer in memory at a time
    hessian   statistics of a layer's inputs, and their factor
    watch     which linear layer sees which inputs
    scales    the scales of a block
    feedback  codes, column by column, each error made good by the columns after it
    refit     the scales of whole rows, once all codes are chosen
    state     what is finished, on disk
    layers    the walk through the model

PyTorch. What comes out are codes and fp16 scales; ``convert/`` writes them.
"""
