"""Replay: running recorded operations again."""
