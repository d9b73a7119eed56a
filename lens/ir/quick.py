"""Making many records quickly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from attrs import field, fields, make_class

P = ParamSpec("P")
T = TypeVar("T")


def quick(kind: Callable[P, T]) -> Callable[P, T]:
    """A maker of records of a frozen attrs class (slotted, without slot for weak references), several times as fast.

    A frozen class sets its fields through ``object.__setattr__``. The maker fills a twin that is not frozen and then
    changes its class. Measured: an ``Op`` in 0.4 us instead of 1.3, a ``Value`` in 0.2 instead of 0.5.
    """

    def become(self: Any) -> None:
        self.__class__ = kind

    own: dict[str, Any] = {a.name: field(default=a.default) for a in fields(cast(Any, kind))}
    body = {"__attrs_post_init__": become}
    name = cast(Any, kind).__name__
    return cast("Callable[P, T]", make_class(name, own, class_body=body, slots=True, weakref_slot=False, eq=False))
