"""Functions by name: the one table that capture, replay and the fx exporter share.

``describe`` tells what lens knows of a callable; ``resolve`` finds the callable of an ``FnRef`` again. What a
function writes, whether it draws random numbers and whether it may return a view comes from torch's operator
schemas where they say so; the few exceptions stand in tables below, each with its reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch
from attrs import field, frozen

from lens.errors import ReplayError
from lens.ir.elements import FnRef, split_function_name
from lens.schemas import has_random_tag, returns_fresh, returns_view, schemas_of, shows_or_copies
from lens.writes import UPDATES_STATISTICS, Place, writes_of

#: Types of tensors whose functions nobody but a mode overrides.
PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


class Kind(IntEnum):
    """How a call of a function is recorded."""

    METADATA = 0  # asks for facts about a tensor: not recorded
    READ = 1  # takes a value out of the tensor world
    OP = 2  # an operation
    COMPOSITE = 3  # a Python function made of operations, which can be opened


#: Ways out of the tensor world -> the kind of the read.
READS = {
    "__bool__": "bool",
    "is_nonzero": "bool",
    "item": "item",
    "_local_scalar_dense": "item",  # what bool(t), t.item(), float(t) and their like come to below autograd
    "tolist": "tolist",
    "__int__": "int",
    "__float__": "float",
    "__index__": "index",
    "__complex__": "complex",
    "numpy": "numpy",
    "__dlpack__": "dlpack",
    "data_ptr": "data_ptr",
    "equal": "equal",
    "allclose": "allclose",
}
#: Methods that tell facts about a tensor and make none.
_METADATA = frozenset(
    [
        *("dim", "size", "stride", "numel", "nelement", "ndimension", "storage_offset", "is_contiguous"),
        *("is_floating_point", "is_complex", "is_signed", "is_same_size", "element_size", "get_device", "has_names"),
        *("is_pinned", "is_shared", "is_set_to", "is_conj", "is_neg", "is_inference", "is_coalesced", "sparse_dim"),
        *("dense_dim", "untyped_storage", "storage", "_typed_storage", "__len__", "__hash__", "is_distributed"),
        *("dim_order", "__dlpack_device__", "result_type", "can_cast", "register_hook"),
        *("register_post_accumulate_grad_hook", "retain_grad", "record_stream", "_is_view", "_fix_weakref"),
        *("backward", "__repr__", "__format__"),
    ]
)
#: Properties that are tensors; every other property is metadata.
_TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "grad", "real", "imag"})
#: Python methods that must run as they are: their bodies handle the tensor object itself, not its values.
_NEVER_OPENED = frozenset({"__deepcopy__", "__reduce_ex__", "__setstate__", "__cuda_array_interface__"})
#: Functions that show another part of the memory than that of the tensors given to them.
_REACH = frozenset({"as_strided", "as_strided_", "set_", "resize_", "resize_as_", "__deepcopy__"})
#: Functions that change where in memory a tensor lies, and no memory.
_MOVE = frozenset({"as_strided_", "set_", "resize_", "resize_as_", "data"}) | {
    *("t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_"),
}
#: Functions that draw random numbers without the tag in their schema: a dropout argument inside, or no schema.
_HIDDEN_RANDOM = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention", "rrelu", "rrelu_", "kaiming_uniform_"]
)
#: Random functions that draw nothing if this argument is false or not there.
_CHANCES: dict[str, Place] = {
    **dict.fromkeys(("dropout", "dropout_", "alpha_dropout", "alpha_dropout_", "feature_dropout"), (2, "train")),
    **dict.fromkeys(("feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"), (2, "train")),
    "scaled_dot_product_attention": (4, "dropout_p"),
}
#: Operators of torch's own. Few others that draw random numbers have the tag that says so.
_OWN_OPERATORS = frozenset(
    f"torch.ops.{name}"
    for name in (
        *("aten", "prims", "prim", "quantized", "_quantized", "onednn", "mkldnn", "mkldnn_prepacked", "sparse"),
        *("xnnpack", "prepacked", "profiler", "c10d", "_c10d_functional", "inductor"),
    )
)
_GUARDS = frozenset({"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"})


@frozen(eq=False)
class Function:
    """What lens knows of a callable.

    Args:
        callable: The callable itself.
        ref: Its name and flags.
        kind: How a call of it is recorded.
        read: For reads, the way out.
        writes: Positions (or keyword names) of the arguments that it always writes to.
        statistics: The flag, and the arguments written if it is true; None if there is no such flag.
        returns_fresh: The tensors that it returns, but for those that it writes to, are new, each in memory of its own.

    Attributes:
        may_write: It writes to an argument, always or if a flag says so.
        recorded: A call of it is an operation.
        composite: An operation that is made of others.
        moves: What it writes to stays in memory as it is; the tensor lies elsewhere afterwards.
        reaches: It may show memory that none of its arguments shows.
        random: It draws random numbers, or may.
        chance: The argument without which it draws none after all (``draws``), if it has one.
        copies: ``__deepcopy__``, which is given a memo: the addresses of what has been copied before.
        hands_out: It gives a tensor that was put there before, and makes none: ``grad``.
        plain: A function of C of torch's own that makes tensors from what it is given, and changes nothing.
        fresh: A plain function all of whose results are new, each in memory of its own.
        fresh_unless: The position of the flag that keeps one from being so (batch norm's ``training``), if it has one.
        shows_or_copies: A plain function that returns its first argument, a view of it, or what is fresh.
        rewrites: One that would be plain, but that it writes to its first argument, and returns that.
        quick: ``plain``, ``rewrites``, one with ``fresh_unless``, or one that would be plain if it drew nothing
            (``chance``).
    """

    callable: Callable[..., Any]
    ref: FnRef
    kind: Kind
    read: str = ""
    writes: tuple[int | str, ...] = ()
    statistics: tuple[Place, tuple[Place, ...]] | None = None
    returns_fresh: bool = False
    # Derived, because they are asked for at every call.
    may_write: bool = field(init=False)
    recorded: bool = field(init=False)
    composite: bool = field(init=False)
    random: bool = field(init=False)
    chance: Place | None = field(init=False)
    plain: bool = field(init=False)
    fresh: bool = field(init=False)
    fresh_unless: int | None = field(init=False)
    shows_or_copies: bool = field(init=False)
    rewrites: bool = field(init=False)
    quick: bool = field(init=False)
    moves: bool = field(init=False)
    reaches: bool = field(init=False)
    copies: bool = field(init=False)
    hands_out: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "may_write", bool(self.writes or self.statistics))
        object.__setattr__(self, "recorded", self.kind in (Kind.OP, Kind.COMPOSITE))
        named = self.ref.namespace if self.kind is Kind.OP else ""
        untold = named.startswith("torch.ops.") and named not in _OWN_OPERATORS
        object.__setattr__(self, "random", self.ref.random or untold)
        object.__setattr__(self, "chance", _CHANCES.get(self.ref.name))
        object.__setattr__(self, "composite", self.kind is Kind.COMPOSITE)
        short = self.ref.name.partition(".")[0]
        object.__setattr__(self, "moves", self.may_write and short in _MOVE)
        object.__setattr__(self, "reaches", short in _REACH)
        object.__setattr__(self, "copies", short == "__deepcopy__")
        object.__setattr__(self, "hands_out", self.ref.name == "grad.__get__")
        in_c = _is_in_c(self.callable, self.ref.namespace)
        direct = in_c and self.kind is Kind.OP and not (self.reaches or self.hands_out)
        bare, may_draw = direct and not self.random, direct and self.chance is not None and not self.may_write
        plain, fresh = bare and not self.may_write, self.returns_fresh
        flag = self.statistics[0][0] if self.statistics is not None and not self.writes else None
        rewrites = bare and self.writes == (0,) and not (self.statistics or self.moves or short == "__setitem__")
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "fresh", plain and fresh)
        object.__setattr__(self, "shows_or_copies", plain and shows_or_copies(short))
        object.__setattr__(self, "fresh_unless", flag if bare and fresh else None)
        object.__setattr__(self, "rewrites", rewrites)
        object.__setattr__(self, "quick", plain or rewrites or may_draw or self.fresh_unless is not None)

    def draws(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
        """Whether a call with these arguments may draw random numbers."""
        return self.random and (self.chance is None or bool(_argument(self.chance, args, kwargs or {})))

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors among these arguments that a call writes to."""
        if not kwargs and self.writes == (0,) and args and self.statistics is None and type(args[0]) is torch.Tensor:
            return [args[0]]  # most of what is written in place
        if not self.writes and not kwargs and self.statistics is not None:
            flag = self.statistics[0][0]
            if flag < len(args) and not args[flag]:
                return []  # batch norm in eval mode
        targets: list[Any] = [] if "out" in self.writes else [kwargs.get("out")]
        for place in self.writes:
            if isinstance(place, int):
                targets.append(args[place] if place < len(args) else None if place else _first_of(kwargs))
            else:
                targets.append(kwargs.get(place))
        if self.statistics is not None:
            switch, places = self.statistics
            if _argument(switch, args, kwargs):
                targets += [_argument(place, args, kwargs) for place in places]
        return list(tensors_in(targets))


def _first_of(kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call that gives it by name."""
    return next((kwargs[name] for name in ("self", "input") if name in kwargs), next(iter(kwargs.values()), None))


#: What functions of C are.
C_TYPES = frozenset({BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MethodWrapperType})


def _is_in_c(function: object, namespace: str) -> bool:
    """Whether a function is one of torch's own in C, whose schemas tell what it does."""
    return namespace in _NAMESPACES and type(function) in C_TYPES


def _argument(place: Place, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    position, name = place
    return args[position] if position < len(args) else kwargs.get(name)


def tensors_in(targets: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors in a sequence, and in the lists and tuples within it."""
    for target in targets:
        if isinstance(target, torch.Tensor):
            yield target
        elif isinstance(target, (list, tuple)):
            yield from tensors_in(target)


@lru_cache(maxsize=8192)
def describe(function: Callable[..., Any]) -> Function:
    """What lens knows of a callable; worked out once per process."""
    namespace, name = _name(function)
    short = name.partition(".")[0]
    accessor = name.rpartition(".")[2]
    if accessor == "__get__":
        kind = Kind.OP if short in _TENSOR_PROPERTIES else Kind.METADATA
        return Function(function, FnRef(namespace, name, view=True), kind)
    if accessor == "__set__":
        kind = Kind.OP if short in ("data", "real", "imag") else Kind.METADATA
        return Function(function, FnRef(namespace, name, mutates=True), kind, writes=(0,))
    if short in READS:
        return Function(function, FnRef(namespace, name), Kind.READ, READS[short])
    if short in _METADATA:
        return Function(function, FnRef(namespace, name), Kind.METADATA)
    composite = is_openable(function)
    schemas = schemas_of(function, short)
    writes = writes_of(function, short, schemas)
    ref = FnRef(
        namespace,
        name,
        mutates=bool(writes) or (short in UPDATES_STATISTICS and not composite),
        random=short in _HIDDEN_RANDOM or namespace == "torch.nn.init" or has_random_tag(schemas),
        view=any(returns_view(schema._schema) for schema in schemas),
        composite=composite,
    )
    return Function(
        function,
        ref,
        Kind.COMPOSITE if composite else Kind.OP,
        writes=writes,
        statistics=_in_place_flag(function) if composite else UPDATES_STATISTICS.get(short),
        returns_fresh=_is_in_c(function, namespace) and returns_fresh(short, schemas),
    )


def _in_place_flag(function: Any) -> tuple[Place, tuple[Place, ...]] | None:
    """For a Python function with a parameter ``inplace``: it, and the first parameter, which is what it writes to."""
    code = getattr(function, "__code__", None)  # a higher-order operator has none
    names: Sequence[str] = code.co_varnames[: code.co_argcount] if code else ()
    return ((names.index("inplace"), "inplace"), ((0, names[0]),)) if "inplace" in names else None


def call_opaque(target: Callable[..., Any], *args: Any, closed_over: Any = (), **kwargs: Any) -> Any:
    """What an opaque operation does: call its first argument. It finds what it closed over by itself."""
    return target(*args, **kwargs)


def resolve(ref: FnRef) -> Callable[..., Any]:
    """The callable of a name. Raises ReplayError if there is none here."""
    if ref.opaque:
        return call_opaque
    owner = _owner(ref.namespace)
    for word in ref.name.split("."):
        owner = getattr(owner, word, None)
    if not callable(owner):
        raise ReplayError(
            f"there is no function {ref}",
            where=f"torch {torch.__version__}",
            hint="import the package that defines it, or use the torch version of the trace",
        )
    return owner  # type: ignore[no-any-return]


def owner_of(namespace: str) -> Any:
    """What stands under a full name: a module, a class, or another object; None if nothing does."""
    words = namespace.split(".")
    for cut in range(len(words), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(words[:cut]))
        except ImportError:
            continue
        for word in words[cut:]:
            owner = getattr(owner, word, None)
        return owner
    return None


_owner = lru_cache(maxsize=256)(owner_of)  # of functions: a class of a notebook may be another the next time


#: Objects of torch's that hold functions on tensors and nothing else.
FUNCTION_TABLES = (
    "torch._C._nn",
    "torch._C._linalg",
    "torch._C._special",
    "torch._C._fft",
    "torch._C._sparse",
    "torch._C._nested",
    "torch._C._VariableFunctions",
)
#: Where a builtin function is looked for, in order of preference.
_NAMESPACES = ("torch", "torch.Tensor", "torch.nn.functional", *FUNCTION_TABLES)


def _name(function: Any) -> tuple[str, str]:
    """Namespace and name under which a callable can be found again, or else is told apart."""
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return split_function_name(f"torch.ops.{function}")
    if isinstance(function, torch._ops.HigherOrderOperator):
        return "torch.ops.higher_order", function.name()  # type: ignore[no-untyped-call]
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return "torch.Tensor", f"{getattr(function.__self__, '__name__', '?')}.{name}"
    for namespace in _NAMESPACES:
        if unpatched(getattr(_owner(namespace), name, None)) is function:
            return namespace, name
    module = getattr(function, "__module__", None) or "builtins"
    if module == "torch._tensor":  # __pow__ is a wrapper that goes by the name of what it wraps
        for attribute, member in vars(torch.Tensor).items():
            if unpatched(member) is function:
                return "torch.Tensor", attribute
    qualified = getattr(function, "__qualname__", name)
    if "<locals>" in qualified:
        qualified = name
    return split_function_name(f"{module}.{qualified}")


def unpatched(function: Any) -> Any:
    """What a function is when no trace has replaced it (``lens.capture.patches``, ``lens.capture.swapping``)."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, property):  # the getter or setter of a property that stands in for one of C
        return getattr(unpatched(owner), function.__name__)
    while hasattr(function, "lens_original"):
        function = function.lens_original
    return function


def is_openable(function: Any) -> bool:
    """Whether a callable is a Python function that asks ``has_torch_function`` before it does its work.

    It may ask itself, or be a dispatcher between functions in its closure that do (``boolean_dispatch``). A
    higher-order operator that calls Python functions (``cond``) can be opened, too.
    """
    if dense_kernel(function) is not None:
        return True
    if not isinstance(function, FunctionType) or function.__name__ in _NEVER_OPENED:
        return False
    cells = function.__closure__ or ()
    return _asks(function) or any(_asks(cell.cell_contents) for cell in cells if is_filled(cell))


#: Higher-order operators whose meaning on ordinary tensors is plain Python.
_PLAIN_HIGHER_ORDER = frozenset({"cond", "while_loop", "scan", "map_impl", "associative_scan", "flex_attention"})


def dense_kernel(function: Any) -> Callable[..., Any] | None:
    """The Python function that a higher-order operator runs on ordinary tensors; None for everything else."""
    if not isinstance(function, torch._ops.HigherOrderOperator):
        return None
    if function.name() not in _PLAIN_HIGHER_ORDER:  # type: ignore[no-untyped-call]
        return None
    # private: without the table of kernels the operator is one operation
    kernels = getattr(function, "py_kernels", {})
    found: Callable[..., Any] | None = kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
    return found


def _asks(function: Any) -> bool:
    return isinstance(function, FunctionType) and not _GUARDS.isdisjoint(function.__code__.co_names)


def is_filled(cell: Any) -> bool:
    """Whether a cell of a closure holds something."""
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell: a name that is bound later
        return False
