"""What a run will take, from its recipe alone: no weights, no training data needed."""
