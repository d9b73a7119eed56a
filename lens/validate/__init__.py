"""Validation: proof that saved activations are right."""
