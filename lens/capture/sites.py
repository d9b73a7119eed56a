"""Where in the user's code a call comes from: code objects and instruction offsets, resolved at sealing."""

from __future__ import annotations

import os
from importlib import import_module
from types import FrameType

import torch
from torch import nn
from torch.nn.modules import module as _all_modules

from lens.ir.places import Site

#: Files of modules whose forward calls nothing but torch.
_CLOSED_FILES = [
    import_module(f"torch.nn.modules.{file}")
    for file in (
        "activation", "batchnorm", "conv", "dropout", "flatten", "instancenorm", "linear", "normalization", "padding",
        "pooling", "rnn", "sparse",
    )
]  # fmt: skip
#: The classes of these files: a module that ``is_closed`` is of one.
CLOSED_CLASSES = frozenset(
    item for file in _CLOSED_FILES for item in vars(file).values() if getattr(item, "__module__", "") == file.__name__
)
#: private: hooks that run in every module; without them no module is known to be closed, and each call's line is sought
_HOOKS_OF_ALL, _PRE_HOOKS_OF_ALL = (
    getattr(_all_modules, name, {"unknown": True}) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
)
_USER, _LIBRARY, _BOUNDARY = "user", "library", "boundary"
_TORCH_DIR = os.path.dirname(torch.__file__) + os.sep
_LENS_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def is_closed(module: nn.Module) -> bool:
    """Whether a call of a module runs no code but torch's, so that all that happens in it comes from its call site.

    Asked of each call of a module whose class is one of ``CLOSED_CLASSES``.
    """
    own = vars(module)  # asking a module for its attributes takes three times as long
    return not (
        own["_modules"]
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or "forward" in own
        or _HOOKS_OF_ALL
        or _PRE_HOOKS_OF_ALL
    )


class _Kinds(dict[str, str]):
    """What files hold, by name, which all code objects of a file share and whose hash Python keeps."""

    def __missing__(self, file: str) -> str:
        kind = self[file] = _LIBRARY if file.startswith((_TORCH_DIR, _LENS_DIR)) else _USER
        return kind


class Locator:
    """Finds the innermost frame of the user's code.

    Frames of torch and lens are passed over. Frames of the files in ``boundaries`` stand for a module call (or the
    trace itself): beyond them the search need not go, because the site of the module call is known.
    """

    def __init__(self, boundaries: tuple[str, ...]) -> None:
        self._kinds = _Kinds(dict.fromkeys(boundaries, _BOUNDARY))

    def raised_at(self, error: BaseException) -> Site:
        """The innermost line of the user's that an error came through; if there is none, one of torch's."""
        users = others = None
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            site = code, traceback.tb_lasti
            if self._kinds[code.co_filename] is _USER:
                users = site
            elif not code.co_filename.startswith(_LENS_DIR):
                others = site
            traceback = traceback.tb_next
        return users or others

    def find(self, frame: FrameType | None, call_site: Site) -> Site:
        """The innermost user frame from ``frame`` outwards, up to the enclosing module call.

        If there is none on this side of it: the module's own call site. None in a model made of torch's modules
        only, none of whose lines is the user's.
        """
        kinds = self._kinds
        while frame is not None:
            code = frame.f_code
            kind = kinds[code.co_filename]
            if kind is _USER:
                return code, frame.f_lasti
            if kind is _BOUNDARY:
                break
            frame = frame.f_back
        return call_site
