"""The elements of a graph: functions, operations, values, leaves, scopes, reads.

All are frozen and refer to each other by id, never by reference; none holds a tensor.
"""

from __future__ import annotations

from typing import Literal, NewType, get_args

from attrs import field, frozen

from lens.ir.templates import Seq, Template
from lens.ir.types import TensorType

OpId = NewType("OpId", int)
ValueId = NewType("ValueId", int)
LeafId = NewType("LeafId", int)
ScopeId = NewType("ScopeId", int)

LeafKind = Literal["input", "parameter", "buffer", "constant", "external"]
#: The keyword under which an op tells the autocast state of its call; no argument of its function.
AUTOCAST = "autocast"
LEAF_KINDS: tuple[LeafKind, ...] = get_args(LeafKind)
_UNINITIALISED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted")
#: Operators of others may have such names, too.
_TORCHS_OWN = ("torch", "torch.Tensor", "torch._C._VariableFunctions", "torch.ops.aten")


@frozen(cache_hash=True)
class FnRef:
    """A function by name.

    Args:
        namespace: Where it lives, such as ``torch``, ``torch.Tensor``, ``torch.nn.functional``.
        name: Its name there; ``T.__get__`` for the getter of a property.
        mutates: Writes to one of its arguments.
        random: May draw from a random number generator.
        view: May return a view of an argument.
        composite: A Python function made of other operations.
        opaque: Python code that ran out of sight: its first argument is what was called.
    """

    namespace: str
    name: str
    mutates: bool = False
    random: bool = False
    view: bool = False
    composite: bool = False
    opaque: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


def split_function_name(full: str) -> tuple[str, str]:
    """Namespace and name of a function from its full name; the inverse of ``str(FnRef(...))``.

    The name is the last word, except for getters (``torch.Tensor`` / ``T.__get__``) and for registered operators
    (``torch.ops.aten`` / ``relu.default``).
    """
    words = full.split(".")
    if words[:2] == ["torch", "ops"] and len(words) > 3:
        cut = 3
    elif words[-1] in ("__get__", "__set__"):
        cut = -2
    else:
        cut = -1
    return ".".join(words[:cut]), ".".join(words[cut:])


@frozen(cache_hash=True)
class Location:
    """A place in a source file; lines from 1, columns from 0, 0 and -1 where unknown."""

    file: str
    line: int
    function: str = ""
    end_line: int = 0
    column: int = -1
    end_column: int = -1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@frozen(weakref_slot=False)
class Value:
    """One version of one tensor.

    Args:
        id: Its number.
        type: dtype, shape, device, layout.
        producer: The op that made it; None for leaves.
        index: Its position among the producer's results, then among its effects.
        alias_of: The value whose memory it shares (a view, a write in place, an identity), if any.
        leaf: The leaf that it is, if any.
        grad_fn: The class of its autograd node, such as ``ReluBackward0``; None if it has none.
    """

    id: ValueId
    type: TensorType
    producer: OpId | None = None
    index: int = 0
    alias_of: ValueId | None = None
    leaf: LeafId | None = None
    grad_fn: str | None = None


@frozen(weakref_slot=False)
class Op:
    """One call of one function.

    Args:
        id: Its position in the order of execution.
        function: What was called.
        operands: The tensors it read.
        args, kwargs: Its arguments; ``Slot(i)`` is ``operands[i]``.
        results: The tensors it returned, and those it wrote to as its purpose.
        form: What the call returned; ``Slot(i)`` is ``results[i]``.
        effects: (old, new) for every other tensor whose memory it wrote to and that is read later.
        scope: The module call in which it ran.
        location: The line of the user's code that led to it.
        duration: Seconds spent in the call.
        interior: How many of the ops right before it ran inside it (composites only).
        yields: For a composite, per result the value of the interior that it is; None if unseen.
    """

    id: OpId
    function: FnRef
    operands: tuple[ValueId, ...] = ()
    args: tuple[Template, ...] = ()
    kwargs: tuple[tuple[str, Template], ...] = ()
    results: tuple[ValueId, ...] = ()
    form: Template = None
    effects: tuple[tuple[ValueId, ValueId], ...] = ()
    scope: ScopeId | None = None
    location: Location | None = None
    duration: float = 0.0
    interior: int = 0
    yields: tuple[ValueId | None, ...] = ()

    @property
    def reads(self) -> tuple[ValueId, ...]:
        """All values it depends on: operands, then the old values of its effects."""
        if not self.effects:
            return self.operands
        return self.operands + tuple(old for old, _ in self.effects)

    @property
    def sources(self) -> tuple[ValueId, ...]:
        """What its results are made of: its operands. An op that changes nothing has effects where it shows memory of
        another tensor than these (``as_strided``); that one, too."""
        return self.operands if self.function.mutates or self.function.composite else self.reads

    @property
    def writes(self) -> tuple[ValueId, ...]:
        """All values it makes: results, then the new values of its effects."""
        if not self.effects:
            return self.results
        return self.results + tuple(new for _, new in self.effects)

    @property
    def keywords(self) -> tuple[tuple[str, Template], ...]:
        """The keyword arguments of its function: ``kwargs`` without the autocast state."""
        return tuple(pair for pair in self.kwargs if pair[0] != AUTOCAST)

    @property
    def autocast(self) -> tuple[tuple[str, str], ...]:
        """The device types that were under autocast when it ran, each with its dtype: ``("cpu", "bfloat16")``."""
        state = next((str(arg) for name, arg in self.kwargs if name == AUTOCAST), "")
        pairs = (part.partition(":") for part in state.split(",") if part)
        return tuple((device, dtype) for device, _, dtype in pairs)

    @property
    def hands_on(self) -> bool:
        """Whether it is a composite that gives nothing but what its interior made."""
        return bool(self.interior) and len(self.yields) == len(self.results) and None not in self.yields

    @property
    def makes_garbage(self) -> bool:
        """Whether it makes uninitialised memory."""
        name = self.function.name.partition(".")[0] if self.function.namespace in _TORCHS_OWN else ""
        if name == "new":  # of sizes; of data it makes a tensor of these
            sizes = (isinstance(arg, int) or (isinstance(arg, Seq) and arg.kind == "size") for arg in self.args[1:])
            return all(sizes)
        return name in _UNINITIALISED


@frozen(weakref_slot=False)
class Leaf:
    """A value that no recorded op made.

    Args:
        id: Its number.
        kind: input, parameter, buffer, constant (an unregistered tensor of a module), or external (lens did not
            see where it came from).
        value: The value that it is.
        addresses: All names it goes by, such as ``conv1.weight``; empty for external leaves.
        trainable: Whether it requires a gradient.
        location: For external leaves, the line that first used it.
    """

    id: LeafId
    kind: LeafKind
    value: ValueId
    addresses: tuple[str, ...] = ()
    trainable: bool = False
    location: Location | None = None


@frozen(weakref_slot=False)
class Scope:
    """One call of one module; ops ``start`` to ``stop - 1`` ran inside.

    Args:
        id: Its number, in order of entry.
        address: The module's first address; empty for the model itself, ``<ClassName>`` for a module that is not in it.
        aliases: Its other addresses.
        cls: The module's class name.
        call: Which call of this module, from 1.
        parent: The enclosing module call.
        training: The module's training flag at the call.
        start, stop: Op positions at entry and exit.
        inputs, outputs: Tensors handed in and out.
        location: The line that called it.
    """

    id: ScopeId
    address: str
    cls: str
    call: int = 1
    parent: ScopeId | None = None
    aliases: tuple[str, ...] = ()
    training: bool = False
    start: int = 0
    stop: int = 0
    inputs: tuple[ValueId, ...] = ()
    outputs: tuple[ValueId, ...] = ()
    location: Location | None = None

    @property
    def is_model(self) -> bool:
        """Whether it is the call of the model itself, not of a module of it."""
        return self.parent is None and not self.address


@frozen
class Read:
    """A value that left the tensor world, such as by ``bool(t)`` or ``t.item()``.

    Args:
        value: What was read.
        kind: The way out: bool, item, int, float, index, complex, tolist, numpy, equal, ...
        result: What was read, shortened if long.
        position: The id of the op that came next.
        scope: The module call in which it happened.
        location: The exact place in the code, innermost frame.
    """

    value: ValueId
    kind: str
    result: Template = None
    position: int = 0
    scope: ScopeId | None = None
    location: Location | None = None


@frozen
class Bundle:
    """Inputs or outputs of the model: their containers, and the tensors in the slots."""

    form: Template = None
    values: tuple[ValueId, ...] = ()


@frozen(weakref_slot=False)
class ModuleInfo:
    """A module of the model, called or not."""

    address: str
    cls: str


@frozen(weakref_slot=False)
class ParameterInfo:
    """A parameter of the model, used or not."""

    address: str
    type: TensorType
    trainable: bool


@frozen
class Fault:
    """The exception that ended the forward pass."""

    type: str
    message: str
    function: str = ""
    location: Location | None = None


@frozen
class Unseen:
    """Something that the backend knows it did not see."""

    what: str
    location: Location | None = None


@frozen
class Meta:
    """Facts about the run.

    Args:
        model: The model's class name.
        backend: The capture backend.
        capabilities: What that backend claims to see.
        fast_paths: ``keep`` or ``open``: whether torch's fused eval paths were left on.
        seed: The seed set before the run; None if none was.
        training: The model's training flag.
        started: Unix time, seconds.
        forward_seconds: Duration of the recorded forward pass.
        lens, torch: Versions.
        modules, parameters: All of the model's, used or not.
        fault: The exception that ended the run, if one did.
        unseen: What the backend knows that it did not see.
        stopped: Where the forward pass was ended, because all that was asked for was there; empty if it was not.
        transformed: Whether a function of the user's changed the values before they were saved.
    """

    model: str = ""
    backend: str = ""
    capabilities: tuple[str, ...] = ()
    fast_paths: str = "keep"
    seed: int | None = None
    training: bool = False
    started: float = 0.0
    forward_seconds: float = 0.0
    lens: str = ""
    torch: str = ""
    modules: tuple[ModuleInfo, ...] = field(factory=tuple)
    parameters: tuple[ParameterInfo, ...] = field(factory=tuple)
    fault: Fault | None = None
    unseen: tuple[Unseen, ...] = field(factory=tuple)
    stopped: str = ""
    transformed: bool = False
