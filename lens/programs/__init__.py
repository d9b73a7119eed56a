"""Traces as programs again: ``torch.fx``, ONNX, and programs for other sizes."""
