"""The typed IR of a trace. Nothing in here imports torch."""
