"""What a folder of the package holds: a file that is added to one is found there."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules(package: str) -> list[ModuleType]:
    """The modules of a package's folder, loaded, in the order of their names; not those of folders in it."""
    paths = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(paths) if not module.ispkg)
    return [importlib.import_module(f"{package}.{name}") for name in names]
