"""Capture: backends that watch a forward pass, and the recorder that writes it down."""

from lens.capture.backend import BackendInfo as BackendInfo
from lens.capture.backend import CaptureBackend as CaptureBackend
from lens.capture.backend import backends as backends
