"""Recorded metrics to a model card, an HTML report and plots; computes nothing."""
