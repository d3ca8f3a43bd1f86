"""Reward models at work: in-process scoring and scoring of files."""
