"""Ways to perturb a text, by family, and the table of them."""
