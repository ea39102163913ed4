"""Parity: does a GGUF in the patched llama.cpp say what its checkpoint says in PyTorch, and if not quite, why.

``reference`` runs the checkpoint in PyTorch, ``runtime`` the GGUF in llama.cpp, ``measure`` compares their logits,
``weights`` compares the weights bit by bit, and ``cli`` joins these.
"""
