"""One question each, answered once."""
