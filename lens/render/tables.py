"""Histories as tables: what each row and column is, as pandas frames, parquet and csv."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lens.errors import RenderError
from lens.ir.elements import Location
from lens.ir.facets import Ancestry, Conditionals, Distances, Recurrence
from lens.ir.naming import layer_type
from lens.ir.op_arguments import argument_names, print_arguments
from lens.render.renderer import Rendered, Renderer, Traced, in_utf8, optional

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


def _facts(thing: object, names: str) -> list[Any]:
    """These attributes of a thing; tuples as lists."""
    return [list(fact) if type(fact) is tuple else fact for fact in _getter(names)(thing)]


@cache
def _getter(names: str) -> Callable[[object], tuple[Any, ...]]:
    return attrgetter(*names.split())


def _layers(history: Traced) -> Iterator[Row]:
    return map(attrgetter(*_LAYERS), history)


def _operations(history: Traced) -> Iterator[Row]:
    graph, index, flops = history.graph, history.index, history.flop_counter
    layers, distances = graph.get(Recurrence), graph.get(Distances)
    ancestry, conditionals = graph.get(Ancestry), graph.get(Conditionals)
    for op in graph.ops:
        row = next(iter(index.by_op.get(op.id, ())), None)
        yield [
            op.id,
            None if row is None else row.name,
            layer_type(op.function),
            str(op.function),
            *((None, None) if row is None else (row.pass_num, row.pass_total)),
            None if layers is None else layers.layer[op.id],
            next((index.scope_label(scope) for scope in reversed(graph.modules_of(op))), None),
            *_facts(op, "scope operands writes"),
            print_arguments(op, [f"%{value}" for value in op.operands]),
            *_facts(op.function, "mutates random view composite opaque"),
            op.duration,
            None if flops is None else flops(op.id),
            *((None, None) if ancestry is None else (ancestry.from_input[op.id], ancestry.to_output[op.id])),
            *(None if distances is None else getattr(distances, column)[op.id] for column in _DISTANCES),
            None if conditionals is None else conditionals.in_branch[op.id],
            *_place(op.location),
        ]


def _values(history: Traced) -> Iterator[Row]:
    graph, index = history.graph, history.index
    for value in graph.values:
        row = index.by_value.get(value.id)
        yield [
            value.id,
            None if row is None else row.name,
            *_facts(value.type, "dtype shape device layout numel nbytes"),
            *_facts(value, "producer index alias_of"),
            *((None, []) if value.leaf is None else _facts(graph.leaves[value.leaf], "kind addresses")),
            value.grad_fn,
            value.id in history.payloads,
            list(graph.users(value.id)),
        ]


def _scopes(history: Traced) -> Iterator[Row]:
    for scope in history.graph.scopes:
        facts = _facts(scope, "id address cls call parent aliases training start stop inputs outputs")
        yield [*facts, *_place(scope.location)]


def _parameters(history: Traced) -> Iterator[Row]:
    graph = history.graph
    leaves = {address: leaf for leaf in graph.leaves if leaf.kind == "parameter" for address in leaf.addresses}
    for parameter in graph.meta.parameters:
        leaf = leaves.get(parameter.address)
        users = [] if leaf is None else list(graph.users(leaf.value))
        facts = _facts(parameter.type, "dtype shape device numel nbytes")
        yield [parameter.address, *facts, parameter.trainable, None if leaf is None else leaf.value, users]


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


def _place(location: Location | None) -> Row:
    return (None, None) if location is None else (location.file, location.line)


_DISTANCES = ("min_from_input", "max_from_input", "min_to_output", "max_to_output")
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


def data_frame(history: Traced, table: str) -> pandas.DataFrame:
    """A table as a pandas frame with typed columns. Linear.

    Raises:
        RenderError: there is no such table, or pandas is not installed.
    """
    if not isinstance(table, str) or table not in TABLES:
        raise RenderError(f"there is no table {table!r:.40}", where="table=", hint=f"give {', '.join(TABLES)}")
    pd = optional("pandas", table, "pip install 'lens-trace[pandas]'")
    columns = TABLES[table].columns
    cells = list(zip(*TABLES[table].rows(history), strict=True)) or [()] * len(columns)
    data = {
        name: pd.Series(_cells(cell, kind), dtype=DTYPES[kind])
        for (name, kind), cell in zip(columns.items(), cells, strict=True)
    }
    frame: pandas.DataFrame = pd.DataFrame(data)
    return frame


def _cells(cells: Sequence[Any], kind: str) -> list[Any]:
    """The cells of a column, texts such as pandas takes."""
    if kind == "text":
        return [text and in_utf8(text) for text in cells]
    return [list(map(in_utf8, texts)) for texts in cells] if kind == "texts" else list(cells)


@frozen
class _TableRenderer(Renderer):
    table: str = "operations"

    def render(self, history: Traced) -> Rendered:
        """The table, or all tables as files. Raises RenderError if a package is not installed."""
        if self.table == "all":
            return {f"{name}{self.suffix}": self.content(history, name) for name in TABLES}
        return self.content(history, self.table)

    @abstractmethod
    def content(self, history: Traced, table: str) -> str | bytes:
        """A file with one table."""


@frozen
class CsvRenderer(_TableRenderer):
    """A table as text with commas; lists as JSON. ``table=all`` gives a folder of all tables."""

    name = "csv"
    suffix = ".csv"

    def content(self, history: Traced, table: str) -> str:
        """The text of one table."""
        frame = data_frame(history, table)
        for name, kind in TABLES[table].columns.items():
            if kind in ("ints", "texts"):
                frame[name] = frame[name].map(json.dumps)
        return str(frame.to_csv(index=False))


@frozen
class ParquetRenderer(_TableRenderer):
    """A table with typed columns. ``table=all`` gives a folder of all tables."""

    name = "parquet"
    suffix = ".parquet"

    def content(self, history: Traced, table: str) -> bytes:
        """The file of one table. Raises RenderError if pyarrow is not installed."""
        pa = optional("pyarrow", self.name, "pip install 'lens-trace[parquet]', or export csv")
        types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "flag": pa.bool_()}
        types |= {"ints": pa.list_(pa.int64()), "texts": pa.list_(pa.string())}
        schema = pa.schema([(name, types[kind]) for name, kind in TABLES[table].columns.items()])
        buffer = BytesIO()
        data_frame(history, table).to_parquet(buffer, engine="pyarrow", index=False, schema=schema)
        return buffer.getvalue()
