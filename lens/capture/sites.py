"""Where in the user's code a call comes from: code objects and instruction offsets, resolved at sealing."""

from __future__ import annotations

import os
from types import CodeType, FrameType

import torch

from lens.ir.tape import Site

_USER, _LIBRARY, _BOUNDARY = 0, 1, 2
_TORCH_DIR = os.path.dirname(torch.__file__) + os.sep
_LENS_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Locator:
    """Finds the innermost frame of the user's code.

    Frames of torch and lens are passed over. The code objects in ``boundaries`` stand for a module call (or the
    trace itself): beyond them the search need not go, because the site of the module call is known.
    """

    def __init__(self, boundaries: tuple[CodeType, ...]) -> None:
        # Keyed by id because hashing a code object is linear in its length; the code is kept so that ids stay unique.
        self._kinds: dict[int, tuple[int, CodeType]] = {id(code): (_BOUNDARY, code) for code in boundaries}

    def find(self, frame: FrameType | None, call_site: Site) -> Site:
        """The innermost user frame from ``frame`` outwards, up to the enclosing module call.

        If there is none on this side of it: the module's own call site. None in a model made of torch's modules
        only, none of whose lines is the user's.
        """
        while frame is not None:
            code = frame.f_code
            known = self._kinds.get(id(code))
            kind = known[0] if known else self._classify(code)
            if kind == _USER:
                return code, frame.f_lasti
            if kind == _BOUNDARY:
                break
            frame = frame.f_back
        return call_site

    def _classify(self, code: CodeType) -> int:
        library = code.co_filename.startswith((_TORCH_DIR, _LENS_DIR))
        kind = _LIBRARY if library else _USER
        self._kinds[id(code)] = (kind, code)
        return kind
