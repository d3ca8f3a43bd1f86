"""Public benchmark suites, each read from its own files and scored by its own rule."""
