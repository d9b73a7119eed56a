"""Passes: analyses and restructurings of graphs. Nothing in here imports torch."""
