"""One command per question; see README.md."""
