"""Histories as tables: what each row and column is, as pandas frames, parquet and csv."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from lens.errors import RenderError
from lens.ir.elements import Location, Op, Scope, Value
from lens.ir.facets import Ancestry, Conditionals, Distances, Facet, Labels, Recurrence
from lens.ir.naming import layer_type
from lens.ir.printer import print_template
from lens.ir.templates import Slot, slots
from lens.render.renderer import Rendered, Traced

if TYPE_CHECKING:
    import pandas

#: Kind of a column -> its dtype in pandas. Missing values are ``<NA>``; lists are Python lists.
DTYPES: Mapping[str, str] = MappingProxyType(
    {"text": "string", "int": "Int64", "float": "float64", "flag": "boolean", "ints": "object", "texts": "object"}
)
Row = Sequence[Any]


@frozen
class Table:
    """A table: its columns by name with their kinds (a key of ``DTYPES``), and what makes its rows."""

    columns: Mapping[str, str]
    rows: Callable[[Traced], Iterable[Row]]


def _columns(text: str) -> Mapping[str, str]:
    return MappingProxyType(dict(word.split(":") for word in text.split()))


def _layers(history: Traced) -> Iterator[Row]:
    names = tuple(_LAYERS)
    for entry in history:
        yield [getattr(entry, name) for name in names]


def _operations(history: Traced) -> Iterator[Row]:
    graph, index, flops = history.graph, history.index, history.flop_counter
    layers, distances = graph.get(Recurrence), graph.get(Distances)
    ancestry, conditionals = graph.get(Ancestry), graph.get(Conditionals)
    for op in graph.ops:
        rows = index.by_op.get(op.id, [])
        flags = op.function
        yield (
            op.id,
            rows[0].name if rows else None,
            layer_type(op.function),
            str(op.function),
            rows[0].pass_num if rows else None,
            rows[0].pass_total if rows else None,
            None if layers is None else layers.layer[op.id],
            _module(history, op.scope),
            op.scope,
            list(op.operands),
            list(op.writes),
            _arguments(history, op),
            *(flags.mutates, flags.random, flags.view, flags.composite, flags.opaque),
            op.duration,
            None if flops is None else flops(op.id),
            *((None, None) if ancestry is None else (ancestry.from_input[op.id], ancestry.to_output[op.id])),
            *_distances(distances, op.id),
            None if conditionals is None else conditionals.in_branch[op.id],
            *_place(op.location),
        )


def _values(history: Traced) -> Iterator[Row]:
    graph, index = history.graph, history.index
    for value in graph.values:
        row = index.by_value.get(value.id)
        kind = value.type
        yield (
            value.id,
            None if row is None else row.name,
            kind.dtype,
            list(kind.shape),
            kind.device,
            kind.layout,
            kind.numel,
            kind.nbytes,
            value.producer,
            value.index,
            value.alias_of,
            *_leaf(history, value),
            value.grad_fn,
            value.id in history.payloads,
            list(graph.users(value.id)),
        )


def _scopes(history: Traced) -> Iterator[Row]:
    for scope in history.graph.scopes:
        yield (
            scope.id,
            scope.address,
            scope.cls,
            scope.call,
            scope.parent,
            list(scope.aliases),
            scope.training,
            scope.start,
            scope.stop,
            list(scope.inputs),
            list(scope.outputs),
            *_place(scope.location),
        )


def _parameters(history: Traced) -> Iterator[Row]:
    graph = history.graph
    leaves = {address: leaf for leaf in graph.leaves if leaf.kind == "parameter" for address in leaf.addresses}
    for parameter in graph.meta.parameters:
        leaf, kind = leaves.get(parameter.address), parameter.type
        yield (
            parameter.address,
            kind.dtype,
            list(kind.shape),
            kind.device,
            kind.numel,
            kind.nbytes,
            parameter.trainable,
            None if leaf is None else leaf.value,
            [] if leaf is None else list(graph.users(leaf.value)),
        )


def _edges(history: Traced) -> Iterator[Row]:
    """Every use of a value: by an operation, parameters among its operands, or as an output of the model."""
    graph, index = history.graph, history.index
    for op in graph.ops:
        rows = index.by_op.get(op.id, [])
        target = rows[0].name if rows else None
        names = argument_names(op)
        for place, value in enumerate(op.reads):
            argument = names[place] if place < len(names) else "written through shared memory"
            yield value, index.name_of(value), target, graph.values[value].producer, op.id, place, argument
    for place, row in enumerate(index.outputs):
        producer = graph.values[row.value].producer
        yield row.value, index.name_of(row.value), row.name, producer, None, place, "output"


def argument_names(op: Op) -> list[str]:
    """Per operand, the argument that it is or is in: its position, or its name. Linear."""
    arguments = [(str(i), arg) for i, arg in enumerate(op.args)] + list(op.kwargs)
    names = [""] * len(op.operands)
    for name, template in arguments:
        for slot in [template.index] if isinstance(template, Slot) else slots(template):
            names[slot] = name
    return names


def _arguments(history: Traced, op: Op) -> str:
    texts = [f"%{value}" for value in op.operands]
    arguments = [print_template(arg, texts) for arg in op.args]
    return ", ".join([*arguments, *(f"{name}={print_template(arg, texts)}" for name, arg in op.kwargs)])


def _distances(distances: Distances | None, op: int) -> Row:
    if distances is None:
        return (None,) * 4
    columns = distances.min_from_input, distances.max_from_input, distances.min_to_output, distances.max_to_output
    return tuple(column[op] for column in columns)


def _module(history: Traced, scope: int | None) -> str | None:
    found: Scope | None = None if scope is None else history.graph.scopes[scope]
    return None if found is None or found.parent is None else history.index.scope_label(found)


def _leaf(history: Traced, value: Value) -> Row:
    if value.leaf is None:
        return None, []
    leaf = history.graph.leaves[value.leaf]
    return leaf.kind, list(leaf.addresses)


def _place(location: Location | None) -> Row:
    return (None, None) if location is None else (location.file, location.line)


_LAYERS = _columns(
    "layer_label:text pass_num:int layer_type:text func_applied_name:text tensor_shape:ints tensor_dtype:text"
    " tensor_fsize:int num_params_total:int func_time_elapsed:float containing_module_origin:text"
    " parent_layers:texts child_layers:texts is_saved:flag"
)
TABLES: Mapping[str, Table] = MappingProxyType(
    {
        "layers": Table(_LAYERS, _layers),
        "operations": Table(
            _columns(
                "op:int label:text type:text function:text pass:int passes:int layer:int module:text scope:int"
                " operands:ints results:ints arguments:text mutates:flag random:flag view:flag composite:flag"
                " opaque:flag seconds:float flops:int from_input:flag to_output:flag min_from_input:int"
                " max_from_input:int min_to_output:int max_to_output:int in_cond_branch:flag file:text line:int"
            ),
            _operations,
        ),
        "values": Table(
            _columns(
                "value:int label:text dtype:text shape:ints device:text layout:text numel:int nbytes:int"
                " producer:int index:int alias_of:int leaf:text addresses:texts grad_fn:text saved:flag users:ints"
            ),
            _values,
        ),
        "scopes": Table(
            _columns(
                "scope:int address:text class:text call:int parent:int aliases:texts training:flag start:int"
                " stop:int inputs:ints outputs:ints file:text line:int"
            ),
            _scopes,
        ),
        "parameters": Table(
            _columns(
                "address:text dtype:text shape:ints device:text numel:int nbytes:int trainable:flag value:int"
                " users:ints"
            ),
            _parameters,
        ),
        "edges": Table(
            _columns("value:int source:text target:text source_op:int target_op:int place:int argument:text"), _edges
        ),
    }
)


def data_frame(history: Traced, table: str = "layers") -> pandas.DataFrame:
    """A table as a pandas frame with typed columns. Linear.

    Raises:
        RenderError: there is no such table, or pandas is not installed.
    """
    if not isinstance(table, str) or table not in TABLES:
        raise RenderError(f"there is no table {table!r:.40}", where="table=", hint=f"give {', '.join(TABLES)}")
    try:
        import pandas as pd
    except ImportError as error:
        raise RenderError("pandas is not installed", where=table, hint="pip install 'lens-trace[pandas]'") from error
    columns = TABLES[table].columns
    cells = list(zip(*TABLES[table].rows(history), strict=True)) or [()] * len(columns)
    data = {
        name: pd.Series(list(cell), dtype=DTYPES[kind])
        for (name, kind), cell in zip(columns.items(), cells, strict=True)
    }
    return pd.DataFrame(data)


@frozen
class CsvRenderer:
    """A table as text with commas; lists as JSON. ``table=all`` gives a folder of all tables."""

    name: ClassVar[str] = "csv"
    suffix: ClassVar[str] = ".csv"
    requires: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    needs_model: ClassVar[bool] = False
    table: str = "operations"

    def render(self, history: Traced) -> Rendered:
        """The table, or all tables as files."""

        def table_text(table: str) -> str:
            frame = data_frame(history, table)
            for name, kind in TABLES[table].columns.items():
                if kind in ("ints", "texts"):
                    frame[name] = frame[name].map(json.dumps)
            return str(frame.to_csv(index=False))

        return _each(self.table, ".csv", table_text)


@frozen
class ParquetRenderer:
    """A table with typed columns. ``table=all`` gives a folder of all tables."""

    name: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = ".parquet"
    requires: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    needs_model: ClassVar[bool] = False
    table: str = "operations"

    def render(self, history: Traced) -> Rendered:
        """The table, or all tables as files. Raises RenderError if pyarrow is not installed."""
        try:
            import pyarrow as pa
        except ImportError as error:
            raise RenderError(
                "pyarrow is not installed", where=self.name, hint="pip install 'lens-trace[parquet]', or export csv"
            ) from error
        types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "flag": pa.bool_()}
        types |= {"ints": pa.list_(pa.int64()), "texts": pa.list_(pa.string())}

        def table_bytes(table: str) -> bytes:
            buffer = BytesIO()
            frame = data_frame(history, table)
            schema = pa.schema([(name, types[kind]) for name, kind in TABLES[table].columns.items()])
            frame.to_parquet(buffer, engine="pyarrow", index=False, schema=schema)
            return buffer.getvalue()

        return _each(self.table, ".parquet", table_bytes)


def _each(table: str, suffix: str, content: Callable[[str], str | bytes]) -> Rendered:
    return {f"{name}{suffix}": content(name) for name in TABLES} if table == "all" else content(table)
