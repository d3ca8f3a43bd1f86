"""Ways to alter a text, by family, and the table of them."""
