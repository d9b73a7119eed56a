"""Places in the source: from the instruction that was running to file, line and columns."""

from __future__ import annotations

import sys
from dis import opname
from functools import cached_property, lru_cache
from types import CodeType
from typing import TypeAlias

from lens.ir.elements import Location

#: A code object and the offset of the running instruction; None where no place is known.
Site: TypeAlias = "tuple[CodeType, int] | None"

#: Names of the instructions that ask for the truth of what the instruction before them has made.
_TRUTH_TESTS = ("POP_JUMP", "JUMP_IF", "UNARY_NOT", "TO_BOOL")


def tests_truth(site: tuple[CodeType, int]) -> bool:
    """Whether the instruction at a site asks for a truth value, as ``if``, ``while``, ``not`` do."""
    code, offset = site
    return _tests_truth(code.co_code, offset)


def _tests_truth(bytecode: bytes, offset: int) -> bool:
    return opname[bytecode[offset]].startswith(_TRUTH_TESTS)


class SiteTable:
    """Turns code objects and instruction offsets into locations.

    What takes time in the length of a function, its hash too, is done once for each: one that is generated may be long.
    """

    def __init__(self) -> None:
        self._places: dict[int, _Places] = {}

    def locate(self, site: Site) -> Location | None:
        """The location of a site, with columns where this Python keeps them (3.11 and later)."""
        if site is None:
            return None
        code, offset = site
        places = self._places.get(id(code)) or self._places_in(code)
        return places.known.get(offset) or places.work_out(offset)

    def locate_read(self, site: Site) -> Location | None:
        """The location of the expression that was read at a site.

        Where a jump tests a truth value, Python gives the jump the place of the whole statement; the expression is
        what the instruction before it has made.
        """
        if site is None:
            return None
        code, offset = site
        places = self._places.get(id(code)) or self._places_in(code)
        if _tests_truth(places.bytecode, offset):
            offset -= 2
            while offset > 0 and opname[places.bytecode[offset]] == "EXTENDED_ARG":
                offset -= 2
        return self.locate((code, max(offset, 0)))

    def _places_in(self, code: CodeType) -> _Places:
        known = _known_locations(code, code.co_filename, code.co_linetable)
        found = self._places[id(code)] = _Places(code, known)
        return found


class _Places:
    """The instructions of a code object.

    Args:
        code: The code object.
        known: Locations by offset; new ones are added.
    """

    def __init__(self, code: CodeType, known: dict[int, Location]) -> None:
        self.code = code
        self.known = known

    @cached_property
    def bytecode(self) -> bytes:
        return self.code.co_code

    def work_out(self, offset: int) -> Location:
        """The location of an instruction that is not known yet."""
        code = self.code
        name = getattr(code, "co_qualname", code.co_name)
        line, end_line, column, end_column = self._positions[offset // 2]
        if line is None or end_line is None or column is None or end_column is None:
            place = Location(code.co_filename, line or code.co_firstlineno, name)
        else:
            place = Location(code.co_filename, line, name, end_line, column, end_column)
        self.known[offset] = place
        return place

    @cached_property
    def _positions(self) -> list[tuple[int | None, int | None, int | None, int | None]]:
        """Per instruction its lines and columns, as far as this Python keeps them."""
        if sys.version_info >= (3, 11):
            return list(self.code.co_positions())
        lines = self.code.co_lines()
        return [(line, None, None, None) for start, stop, line in lines for _ in range(start, stop, 2)]


@lru_cache(maxsize=1024)
def _known_locations(code: CodeType, file: str, lines: bytes) -> dict[int, Location]:
    """The locations of a code object that were asked for, kept from trace to trace: 2 us per op on densenet121.

    ``file`` and ``lines`` are the code's own: they keep apart what Python takes for equal.
    """
    return {}
