"""How much memory a process has, in bytes."""

import resource
import sys
from pathlib import Path


def resident(field: str) -> int:
    """A line of Linux's account of this process, such as ``VmRSS`` (now) or ``VmHWM`` (the most so far)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def peak_memory() -> int:
    """The most memory that this process has had.

    Not ``ru_maxrss`` on Linux: a new process begins there with the peak of the one that started it.
    """
    if sys.platform == "linux":
        return resident("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
