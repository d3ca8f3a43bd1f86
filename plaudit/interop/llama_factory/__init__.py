"""LLaMA-Factory: its models, templates, recipes, data entries and protocol."""
