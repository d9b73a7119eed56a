"""Renderers and exporters: from graphs to pictures, tables and files."""
