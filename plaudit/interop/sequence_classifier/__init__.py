"""Sequence classifiers of transformers, whole or as PEFT adapters."""
