"""Which VTA to build: resources of FPGAs, and a sweep of accelerators by the task network.

The room has the name of what it lends the package: called, it is `design.codesign`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`design.codesign`, whichever of the two was imported first."""
        from oneshot_ml2.codesign.design import codesign

        return codesign(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
