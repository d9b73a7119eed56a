"""torch's compiler, when it is loaded while functions are replaced: it is to find the originals.

It looks at what the functions are when it is loaded (``torch.cond`` loads it), takes no stand-ins, and would be broken
for the rest of the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: private: the package of the compiler; a torch that has it elsewhere loads it as any other
_COMPILER = "torch._dynamo"


@contextmanager
def compiler_loaded(within: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Have torch's compiler, if it is first imported during the block, be loaded within a context of its own."""
    if _COMPILER in sys.modules:
        yield
        return
    finder = _Finder(within)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path[:] = [other for other in sys.meta_path if other is not finder]


class _Finder(MetaPathFinder):
    def __init__(self, within: Callable[[], AbstractContextManager[None]]) -> None:
        self.within = within

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual place, with a loader of ours."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _COMPILER else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Within(spec.loader, self.within)
        return spec


class _Within(Loader):
    def __init__(self, loader: Any, within: Callable[[], AbstractContextManager[None]]) -> None:
        self.loader, self.within = loader, within

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the usual loader does."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the usual loader does, which the module has as its own from now on."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        with self.within():
            self.loader.exec_module(module)
