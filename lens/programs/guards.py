"""Guards: a program holds one way through the model, and says so when an input would go another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lens.errors import GuardError

#: How a read is made again, by its kind.
_AGAIN = {"item": "item", "bool": "__bool__", "int": "__int__", "float": "__float__", "index": "__index__"}
_AGAIN |= {"tolist": "tolist", "complex": "__complex__"}


class ReadGuard(nn.Module):
    """Raises GuardError if a tensor no longer tells what it told in the run that was traced.

    Compiled or exported code cannot raise an error of lens: there, a recorded truth value is an assertion of torch's
    (RuntimeError), and other reads are not checked.

    Args:
        kind: The way out of the tensor world, one of ``GUARDED``.
        expected: What was read.
        where: The line that read it.
    """

    def __init__(self, kind: str, expected: Any, where: str) -> None:
        super().__init__()
        self.kind, self.expected, self.where = kind, expected, where

    def forward(self, value: torch.Tensor) -> None:
        """Check one read."""
        if torch.compiler.is_compiling():
            if self.kind == "bool":
                truth = value if self.expected else value.logical_not()
                torch.ops.aten._assert_async.msg(truth, f"this input goes another way at {self.where}")
            return
        found = getattr(value.detach(), _AGAIN[self.kind])()
        if isinstance(found, list):
            found = tuple(found)
        if found != self.expected and not (found != found and self.expected != self.expected):  # nan is nan
            raise GuardError(
                f"this input goes another way than the traced one: {self.kind}() gave {self.expected!r}, now {found!r}",
                where=self.where,
                hint="trace the model on this input; to_fx(guards=False) runs the recorded way whatever the input",
            )


class ArgumentGuard(nn.Module):
    """Raises GuardError if an argument that is no tensor, or a tensor given twice, is not as in the trace."""

    def __init__(self, name: str, expected: Any = None) -> None:
        super().__init__()
        self.name, self.expected = name, expected

    def forward(self, given: Any, first: Any = None) -> None:
        """Check one argument; with ``first``, that the two are the same tensor."""
        if isinstance(given, torch.Tensor) and first is not None:
            alike = torch.compiler.is_compiling() or given is first or torch.equal(given, first)
        else:
            alike = type(given) is type(self.expected) and given == self.expected
        if not alike:
            raise GuardError(
                f"the program was traced with {self.name} "
                + ("and another argument as one tensor" if first is not None else f"= {self.expected!r}"),
                where=self.name,
                hint="trace the model with the arguments that you need, tensors that may differ as different tensors",
            )


#: The kinds of reads that can be checked.
GUARDED = frozenset(_AGAIN)
