"""Models, recipes and data of other tools: one folder per tool, and the operations on them."""
