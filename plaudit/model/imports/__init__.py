"""Reward models of other tools, recognised by their files and read by their own rules."""
