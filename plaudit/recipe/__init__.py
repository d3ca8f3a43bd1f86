"""A recipe: its schema, its validation, its YAML, and the keys of transformers and PEFT."""
