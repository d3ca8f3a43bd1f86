"""Layers that compute in fewer passes than those of transformers and PEFT."""
