"""From function names to the layer types of labels (paper, "Layer nomenclature")."""

from __future__ import annotations

import re
from functools import lru_cache

from lens.ir.elements import FnRef

#: Spellings of one operation that Python or torch have besides its name.
_SYNONYMS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
}
#: Operators whose reflected form computes the same.
_COMMUTATIVE = {"radd": "add", "rmul": "mul", "rand": "and", "ror": "or", "rxor": "xor"}
_DUNDER = re.compile(r"__(\w+?)__")
_IN_PLACE = re.compile(r"i(add|sub|mul|div|truediv|floordiv|mod|pow|matmul|and|or|xor|lshift|rshift)")


@lru_cache(maxsize=4096)
def layer_type(function: FnRef) -> str:
    """The layer type of a function: its name in lower case without underscores, operators under their name.

    ``add_``, ``__add__``, ``__radd__`` and ``__iadd__`` are ``add``; ``__rsub__`` is ``rsub``.
    """
    name = function.name.removesuffix(".__get__").partition(".")[0]
    dunder = _DUNDER.fullmatch(name)
    if dunder:
        name = dunder[1]
        in_place = _IN_PLACE.fullmatch(name)
        name = in_place[1] if in_place else _COMMUTATIVE.get(name, name)
    stripped = name.strip("_")
    name = _SYNONYMS.get(stripped, stripped)
    return name.replace("_", "").lower() or "op"
