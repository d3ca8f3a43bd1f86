"""Protocols of the server: what each asks, and how each is answered. One row per protocol."""
