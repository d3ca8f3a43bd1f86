"""TRL: a reward function for its trainers."""
