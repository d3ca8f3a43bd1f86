"""Labels to pairs inside a group, and pure losses returning (sum, count)."""
