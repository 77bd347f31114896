"""Weights that come with the package: found in the wheel's data, or in ``pretrained/`` of the checkout.

They are files ``NAME@TAG.safetensors`` with their cards (``.json``) beside them. Weights never change under their tag:
better ones get the next number. A name without a tag stands for its highest.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.network.predictor import Predictor

_FILE = re.compile(r"(?P<name>[^@]+)@(?P<tag>[1-9][0-9]*)\.safetensors")


@dataclass(frozen=True, order=True)
class Shipped:
    """A weights file that comes with the package."""

    name: str
    tag: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


def _folders() -> list[Path]:
    """Where weights may lie, the checkout's own first."""
    package = Path(str(resources.files("oneshot_ml2")))
    checkout = package.parent / "pretrained"
    return [folder for folder in (checkout, package / "data" / "pretrained") if folder.is_dir()]


def _shipped() -> list[Shipped]:
    """All there are, sorted by name and tag; of equal ones that of the first folder."""
    found: dict[tuple[str, int], Path] = {}
    for folder in _folders():
        for path in folder.iterdir():
            match = _FILE.fullmatch(path.name)
            if match:
                found.setdefault((match["name"], int(match["tag"])), path)
    return sorted(Shipped(name, tag, path) for (name, tag), path in found.items())


def list_pretrained() -> list[str]:
    """The shipped weights with their tags, e.g. ``default@1``, sorted by name and tag."""
    return [str(one) for one in _shipped()]


def find_pretrained(name: str = "default") -> Path:
    """The weights file of a name, with a tag (``default@1``) or without (the highest).

    Raises:
        WeightsError: no such weights (names those there are).
    """
    bare, _, tag = name.partition("@")
    shipped = _shipped()
    for one in reversed(shipped):
        if bare == one.name and tag in ("", str(one.tag)):
            return one.path
    message = unknown("pretrained weights", name, map(str, shipped), also=[one.name for one in shipped])
    if not shipped:
        message += ": install the package again, or train some with `oneshot-ml2 train`"
    raise WeightsError(message)


def load_pretrained(name: str) -> Predictor:
    """The shipped network of a name, with its tag or without; loaded once per process.

    Raises:
        WeightsError: no such weights, or weights that this version cannot use.
    """
    return load_once(find_pretrained(name))


@functools.lru_cache(maxsize=8)
def load_once(path: Path) -> Predictor:
    """The network of a file; the same object for all that ask for it."""
    return Predictor.load(path)
