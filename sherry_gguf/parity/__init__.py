"""Parity: does a GGUF in the patched llama.cpp say what its checkpoint says in PyTorch, and if not quite, why.

``reference`` runs the checkpoint in PyTorch, ``runtime`` the GGUF in llama.cpp, ``scoring`` compares their
logits, ``weights`` the weights bit by bit, ``compare`` joins these, and ``findings`` judges them.
"""
