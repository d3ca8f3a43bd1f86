"""Decoder layers with fewer passes, exchanged for those of transformers and PEFT."""
