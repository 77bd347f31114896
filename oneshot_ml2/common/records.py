"""What the modules of a folder bring: a file that is added to one is found there, and nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules(package: str) -> list[ModuleType]:
    """The modules of a package's folder, loaded, in the order of their names; not those of folders in it."""
    paths = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(paths) if not module.ispkg)
    return [importlib.import_module(f"{package}.{name}") for name in names]


def records(package: str, kind: type[T]) -> list[T]:
    """Records of a class that `modules` of a package hold at their top level, by module, then in the order written.

    A module that imports another one's record does not register it again.
    """
    found: list[T] = []
    for module in modules(package):
        found += [value for value in vars(module).values() if isinstance(value, kind) and value not in found]
    return found
