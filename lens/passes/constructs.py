"""Which construct of the source code a place belongs to: is it evaluated to decide an ``if``, a ``while``, ..."""

from __future__ import annotations

import ast
import linecache
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from attrs import define, field, frozen

from lens.ir.elements import Location

#: What a place is called when the source is not to be had or does not show it.
UNKNOWN = "unknown"


Nodes: TypeAlias = "tuple[ast.expr | ast.stmt, ...]"


@frozen
class Test:
    """An expression whose truth steers the control flow, and what it steers: what runs if it holds, and if not."""

    expression: ast.expr
    construct: str
    body: Nodes = ()
    orelse: Nodes = ()


@frozen
class Role:
    """What an expression does in a test.

    Args:
        construct: The construct that the test belongs to.
        path: From the expression outwards to the whole test, the nodes in between, both included.
        test: The test; None if it is not known which.
    """

    construct: str
    path: tuple[ast.expr, ...]
    test: Test | None = None

    def arm_of(self, location: Location) -> bool | None:
        """Which arm of the test a place is in: True for the body, False for the rest, None for neither."""
        if self.test is None or location.end_line == 0:
            return None
        if any(_covers(node, location) for node in self.test.body):
            return True
        return False if any(_covers(node, location) for node in self.test.orelse) else None


@define
class SourceReader:
    """Reads source files, each once. Sources come from ``linecache``, which knows notebook cells too."""

    #: By file and line.
    _tests: dict[str, Mapping[int, Sequence[Test]]] = field(factory=dict)
    _roles: dict[Location | None, Role | None] = field(factory=lambda: {None: None})

    def role(self, location: Location | None) -> Role | None:
        """The role of the code at a location; None if it is in no test, or the source is not to be had."""
        if location not in self._roles:
            assert location is not None
            self._roles[location] = self._find(location)
        return self._roles[location]

    def _find(self, location: Location) -> Role | None:
        tests = self._tests_of(location.file).get(location.line, ())
        if location.end_line == 0:
            return _without_columns(tests)
        found: Role | None = None
        for test in tests:
            if _covers(test.expression, location):
                path = _path_to(test.expression, location)
                if path and (found is None or _size(test.expression) < _size(found.path[-1])):
                    found = Role(test.construct, path, test)
        return found

    def _tests_of(self, file: str) -> Mapping[int, Sequence[Test]]:
        if file not in self._tests:
            self._tests[file] = _tests_in("".join(linecache.getlines(file)))
        return self._tests[file]


@lru_cache(maxsize=64)
def _tests_in(source: str) -> Mapping[int, Sequence[Test]]:
    """Per line of a source text the tests that are there, or in part; none if it is no Python.

    Parsing a large file takes up to 0.1 s, so it is kept.
    """
    found: dict[int, list[Test]] = defaultdict(list)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    for test in _tests(tree, source.splitlines(keepends=True)):
        for line in range(test.expression.lineno, (test.expression.end_lineno or 0) + 1):
            found[line].append(test)
    return dict(found)


def _tests(tree: ast.Module, lines: list[str]) -> Iterator[Test]:
    inside_tests: set[int] = set()
    for node in ast.walk(tree):
        for test in _tests_of_node(node, lines):
            inside_tests.update(id(inner) for inner in ast.walk(test.expression))
            yield test
    for node in ast.walk(tree):  # conditions for their own sake: y = a and b
        if id(node) in inside_tests:
            continue
        if isinstance(node, ast.BoolOp):
            inside_tests.update(id(inner) for inner in ast.walk(node))
            yield Test(node, "and" if isinstance(node.op, ast.And) else "or")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield Test(node, "not")


def _tests_of_node(node: ast.AST, lines: list[str]) -> Iterator[Test]:
    match node:
        case ast.If():
            text = lines[node.lineno - 1].encode()[node.col_offset :]
            construct = "elif" if text.startswith(b"elif") else "if"
            yield Test(node.test, construct, tuple(node.body), tuple(node.orelse))
        case ast.While():
            yield Test(node.test, "while", tuple(node.body), tuple(node.orelse))
        case ast.Assert():
            yield Test(node.test, "assert")
        case ast.IfExp():
            yield Test(node.test, "ternary", (node.body,), (node.orelse,))
        case ast.comprehension():
            for condition in node.ifs:
                yield Test(condition, "comprehension")
        case ast.Match():
            yield Test(node.subject, "match")
            for case in node.cases:
                if case.guard is not None:
                    yield Test(case.guard, "match")


def _covers(node: ast.expr | ast.stmt, location: Location) -> bool:
    begin = (node.lineno, node.col_offset)
    end = (node.end_lineno or 0, node.end_col_offset or 0)
    inside = begin <= (location.line, location.column)
    return inside and (location.end_line, location.end_column) <= end


def _size(node: ast.expr) -> tuple[int, int]:
    lines = (node.end_lineno or 0) - node.lineno
    return lines, (node.end_col_offset or 0) - node.col_offset


def _path_to(test: ast.expr, location: Location) -> tuple[ast.expr, ...]:
    """From the innermost expression that covers the location outwards to the test."""
    path: list[ast.expr] = [test]
    while True:
        parts = [p for p in ast.iter_child_nodes(path[-1]) if isinstance(p, ast.expr)]
        inner = next((part for part in parts if _covers(part, location)), None)
        if inner is None:
            return tuple(reversed(path))
        if isinstance(inner, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            path.append(inner)
            return tuple(reversed(path))
        path.append(inner)


def _without_columns(here: Sequence[Test]) -> Role | None:
    """The one test on a line; unknown if there are several."""
    if not here:
        return None
    if len(here) > 1:
        return Role(UNKNOWN, ())
    return Role(here[0].construct, ())
