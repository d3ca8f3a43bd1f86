"""OpenRLHF: its reward models and its remote reward model protocol."""
