"""Templates: the typed form of the arguments and results of a call.

A template is a tree of Python constants and of the nodes below; tensors are ``Slot``s, numbered into a list of
values that stands beside the template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from attrs import frozen


@frozen
class Slot:
    """The place of a tensor: an index into the operands (or results) beside the template."""

    index: int


@frozen(weakref_slot=False)  # made quickly at sealing
class Seq:
    """A list, tuple, ``torch.Size`` or named tuple (``kind`` is then its qualified class name)."""

    kind: str
    items: tuple[Template, ...]


@frozen
class Map:
    """A dict, other mapping or dataclass; ``kind`` is ``dict`` or the qualified class name."""

    kind: str
    items: tuple[tuple[Template, Template], ...]


@frozen
class Slice:
    """A Python slice."""

    start: Template
    stop: Template
    step: Template


@frozen
class Symbol:
    """A named constant: dtype, device, layout, memory_format, or ``Ellipsis``."""

    kind: str
    name: str


@frozen
class Opaque:
    """Any other object, such as a generator or a callable.

    Args:
        type: Its qualified class name.
        text: A short description for the reader.
        index: Its number among the opaque objects of the trace; a live history keeps the objects for replay.
    """

    type: str
    text: str
    index: int


Atom: TypeAlias = None | bool | int | float | complex | str
Node: TypeAlias = Slot | Seq | Map | Slice | Symbol | Opaque
Template: TypeAlias = Atom | Node
#: The one NaN in templates. Tuples take the same object for equal, and it is equal to nothing else.
NAN = float("nan")


def one_nan(number: float) -> float:
    """The number; ``NAN`` for any NaN, so that templates that say the same are equal."""
    return number if number == number else NAN


def children(template: Template) -> Iterator[Template]:
    """The direct parts of a template, in order."""
    if isinstance(template, Seq):
        yield from template.items
    elif isinstance(template, Map):
        for key, item in template.items:
            yield key
            yield item
    elif isinstance(template, Slice):
        yield from (template.start, template.stop, template.step)


def slots(template: Template) -> Iterator[int]:
    """The slot numbers in a template, in order of appearance. Linear in its size."""
    return (node.index for node in _walk(template) if isinstance(node, Slot))


def holds_slots(template: Template) -> bool:
    """Whether there are tensors in a template. Linear in its size."""
    return any(True for _ in slots(template))


def opaques(template: Template) -> Iterator[Opaque]:
    """The opaque objects in a template, in order of appearance. Linear in its size."""
    return (node for node in _walk(template) if isinstance(node, Opaque))


def _walk(template: Template) -> Iterator[Template]:
    stack: list[Template] = [template]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(list(children(node))))


def map_nodes(template: Template, change: Callable[[Node], Template | None]) -> Template:
    """A copy in which every node for which ``change`` gives a template is that template. Linear in its size."""
    if not isinstance(template, (Slot, Seq, Map, Slice, Symbol, Opaque)):
        return template
    changed = change(template)
    if changed is not None:
        return changed
    if isinstance(template, Seq):
        return Seq(template.kind, tuple(map_nodes(item, change) for item in template.items))
    if isinstance(template, Map):
        return Map(
            template.kind,
            tuple((map_nodes(k, change), map_nodes(v, change)) for k, v in template.items),
        )
    if isinstance(template, Slice):
        parts = (map_nodes(part, change) for part in children(template))
        return Slice(*parts)
    return template


def default_form(count: int) -> Template:
    """The template that a call with ``count`` tensors as results has unless it says otherwise."""
    if count == 1:
        return Slot(0)
    return Seq("tuple", tuple(Slot(i) for i in range(count))) if count else None
