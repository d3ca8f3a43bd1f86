"""How good: accuracy on real preferences, and what the audit finds."""
