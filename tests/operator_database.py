"""PyTorch's own operator and module databases as a test of capture: every entry, called every way it can be called.

What is not plainly right stands in three tables with its reason: ``NOT_RUN``, ``EXEMPT`` and ``UNINITIALISED``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from attrs import frozen
from torch.testing._internal import common_methods_invocations as operators
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_utils import set_rng_seed
from torch.utils._pytree import tree_map
from witness import SEED, Call, Finding, examine

from lens import registry

#: One of each kind of dtype; an entry that supports none of them is tried with one that it does support.
DTYPES = (torch.float32, torch.complex64, torch.int64, torch.bool)
FOREACH = ("foreach_unary_op_db", "foreach_binary_op_db", "foreach_pointwise_op_db")
FOREACH += ("foreach_reduce_op_db", "foreach_other_op_db")

#: The variants of a call -> a letter for tables.
KINDS_OF_CALLS = {
    "function": "f",
    "method": "m",
    "operator": "p",
    "in-place": "i",
    "in-place operator": "q",
    "out": "o",
    "train": "t",
    "eval": "e",
}
#: Entries that torch does not run on a CPU -> why.
NOT_RUN = {
    **dict.fromkeys(
        (
            "jiterator_unary",
            "jiterator_binary",
            "jiterator_4inputs_with_extra_args",
            "jiterator_binary_return_by_ref",
            "jiterator_2inputs_2outputs",
        ),
        "torch compiles these for GPUs only",
    ),
    **dict.fromkeys(
        (
            "torch.ops.aten._flash_attention_forward",
            "torch.ops.aten._efficient_attention_forward",
            "nn.functional.batch_norm.without_cudnn",
        ),
        "the entry has no CPU dtypes",
    ),
}
_MOMENTUM_0 = (
    "writes",
    "was not written to",
    "with momentum 0 the statistics are written back as they were and torch counts no write; lens records one",
)
_OUT_AS_IT_WAS = (
    "replay",
    "make no difference",
    "with out= torch gives that tensor as it was, whatever the operand; the validator says so",
)
#: Entries with findings that are no faults -> their kind, a part of their text, and why they are none.
EXEMPT = {
    "as_strided.partial_views": (
        "external",
        "",
        "as_strided shows memory outside of the view that is its operand; no tensor that lens has met shows it, so it "
        "is a leaf of unknown origin",
    ),
    "native_batch_norm": _MOMENTUM_0,
    "_native_batch_norm_legit": _MOMENTUM_0,
    "_batch_norm_with_update": _MOMENTUM_0,
    "nn.functional.batch_norm": _MOMENTUM_0,
    "fft.ihfftn": _OUT_AS_IT_WAS,
    "fft.ihfft2": _OUT_AS_IT_WAS,
    "broadcast_shapes": ("calls", "nothing is recorded", "takes and gives sizes; no tensor takes part"),
}
#: Entries whose results depend on uninitialised memory; torch is told to fill it, or nothing could be compared.
UNINITIALISED = frozenset(
    [
        *("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"),
        *("linalg.lstsq", "linalg.lstsq.grad_oriented"),  # driver gelsy reads memory that torch leaves unset
        *(f"nn.Lazy{name}{n}d" for name in ("Conv", "ConvTranspose") for n in (1, 2, 3)),
    ]
)


@frozen
class Entry:
    """An entry of a database: its name, and its calls by dtype or by train and eval, given how many samples."""

    database: str
    name: str
    calls: dict[str, Callable[[int], Iterator[Call]]]

    def outcome(self, backend: str, samples: int = 5) -> Outcome:
        """Try all calls with a backend, in one trace."""
        ready: list[Call] = []
        refused = Counter[str]()
        for mode, calls in self.calls.items():
            given = list(calls(samples))
            able = [call for call in map(possible, given) if call is not None]
            ready += able
            refused[mode] = len(given) - len(able)
        with no_uninitialised_memory() if self.name in UNINITIALISED else nullcontext():
            findings = examine(ready, backend) if ready else []
        return Outcome(self, Counter(call.variant for call in ready), refused, tuple(findings))


@frozen
class Outcome:
    """What came of an entry: how many calls of each variant ran, how many torch refused, and the findings."""

    entry: Entry
    calls: Counter[str]
    refused: Counter[str]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> list[str]:
        """What is wrong, exemptions taken off; an exemption that is not needed is wrong too."""
        name = self.entry.name
        if (name in NOT_RUN) == bool(self.calls):
            return ["it runs, so it should not stand in NOT_RUN" if self.calls else "none of its calls runs"]
        kind, part, _ = EXEMPT.get(name, ("", "", ""))
        return [str(f) for f in self.findings if not (name in EXEMPT and f.kind == kind and part in str(f))]

    @property
    def reason(self) -> str:
        """Why it is not plainly right; empty if it is."""
        exempt = EXEMPT[self.entry.name][2] if self.findings and self.entry.name in EXEMPT else ""
        return NOT_RUN.get(self.entry.name, exempt)


def entries() -> list[Entry]:
    """All entries of the operator database, of torch's databases of foreach functions, and of the module database."""
    found = [_operator("op_db", entry) for entry in operators.op_db]
    found += [_operator("foreach", entry) for name in FOREACH for entry in getattr(operators, name, ())]
    return found + [_module(entry) for entry in module_db]


def backends() -> list[str]:
    """The backends that can be used here and see Python-level functions."""
    made = {name: registry.find("backends", name)() for name in sorted(registry.names("backends"))}
    return [name for name, b in made.items() if "composites" in b.capabilities and b.unavailable() is None]


def _operator(database: str, entry: Any) -> Entry:
    supported = entry.supported_dtypes("cpu")
    dtypes = [d for d in DTYPES if d in supported] or sorted(supported, key=str)[:1]
    return Entry(database, entry.full_name, {_name(d): _Variants(entry, d) for d in dtypes})


@frozen
class _Variants:
    """The calls of an entry of the operator database: its first samples, in every variant that it has."""

    entry: Any
    dtype: torch.dtype

    def __call__(self, samples: int) -> Iterator[Call]:
        entry, dtype = self.entry, _name(self.dtype)
        variants = {
            "function": entry.op,
            "method": entry.method_variant,
            "operator": entry.operator_variant,
            "in-place": entry.inplace_variant,
            "in-place operator": entry.inplace_operator_variant,
            "out": entry.op if entry.supports_out else None,
        }
        set_rng_seed(SEED)
        # Not entry.sample_inputs, which looks through the source files of its callers.
        for sample in islice(entry.sample_inputs_func(entry, "cpu", self.dtype, False), samples):
            for variant, function in variants.items():
                if function is not None:
                    yield Call(variant, dtype, function, (sample.input, *sample.args), dict(sample.kwargs))


def _module(entry: Any) -> Entry:
    return Entry("module_db", entry.name, {"train": _ModuleCalls(entry, True), "eval": _ModuleCalls(entry, False)})


@frozen
class _ModuleCalls:
    """The calls of an entry of the module database: its first samples in float32, or what it supports instead."""

    entry: Any
    training: bool

    def __call__(self, samples: int) -> Iterator[Call]:
        supported = self.entry.supported_dtypes("cpu")
        dtype = torch.float32 if torch.float32 in supported else min(supported, key=str)
        set_rng_seed(SEED)
        given = self.entry.module_inputs_func(
            self.entry, device="cpu", dtype=dtype, requires_grad=False, training=self.training
        )
        for sample in islice(given, samples):
            made = sample.constructor_input
            module = self.entry.module_cls(*made.args, **made.kwargs).to(dtype).train(self.training)
            forward = sample.forward_input
            yield Call("train" if self.training else "eval", _name(dtype), module, forward.args, forward.kwargs)


def possible(call: Call) -> Call | None:
    """The call, with ``out=`` filled in if that is its variant; None where torch itself refuses it."""
    try:
        result = call.fresh().run()
        if call.variant == "out":
            out = tree_map(torch.zeros_like, result)
            call = Call("out", call.dtype, call.function, call.args, {**call.kwargs, "out": out})
            call.fresh().run()
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AssertionError):
        return None
    return call


@contextmanager
def no_uninitialised_memory() -> Iterator[None]:
    """Have torch fill new memory, so that what it makes of it is the same twice."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
