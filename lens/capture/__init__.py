"""Capture: backends that watch a forward pass, and the recorder that writes it down."""
