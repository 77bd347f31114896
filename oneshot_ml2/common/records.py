"""Records by which the modules of a folder register what they bring: a new file is found, nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def records(package: str, kind: type[T]) -> list[T]:
    """Records of a class that modules of a package hold at their top level, by module, then in the order written.

    All modules of the package are imported, but not those of packages within. A module that imports another one's
    record does not register it again.
    """
    folder = importlib.import_module(package).__path__
    found: list[T] = []
    for name in sorted(info.name for info in pkgutil.iter_modules(folder) if not info.ispkg):
        module = importlib.import_module(f"{package}.{name}")
        found += [value for value in vars(module).values() if isinstance(value, kind) and value not in found]
    return found
