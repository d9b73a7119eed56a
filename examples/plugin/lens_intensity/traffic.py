"""The pass and its facet."""

from typing import ClassVar

from attrs import frozen

from lens.ir.facets import Facet
from lens.passes.protocol import PassResult


@frozen
class Traffic(Facet):
    """Per op, the bytes of its operands and results together."""

    name: ClassVar[str] = "traffic"
    nbytes: tuple[int, ...]


@frozen
class TrafficPass:
    """Bytes that each operation reads and writes."""

    name = "traffic"
    requires = ()
    provides = (Traffic,)
    preserves = ()

    def run(self, graph, context):
        sizes = [sum(graph.values[v].type.nbytes for v in (*op.operands, *op.results)) for op in graph.ops]
        return PassResult((Traffic(tuple(sizes)),))
