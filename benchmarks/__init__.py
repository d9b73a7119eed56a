"""What lens costs, beside the plain forward, an empty mode, forward hooks and TorchLens: ``python -m benchmarks``."""
