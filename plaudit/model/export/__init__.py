"""Reward models in the layouts that other tools load: a table of exporters, one file per tool."""
