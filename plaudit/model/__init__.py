"""The reward model: backbone, LoRA, scalar head, packed attention, checkpoints."""
