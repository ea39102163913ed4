"""The stages of evidence_training.py."""
