"""Weights that come with the package: found in the wheel's data, or in ``pretrained/`` of the checkout.

They are files ``NAME@TAG.safetensors`` with their cards (``.json``) beside them. Weights never change under their tag:
better ones get the next number. A name without a tag stands for its highest.
"""

from __future__ import annotations

import difflib
import functools
import re
from importlib import resources
from pathlib import Path

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.network.predictor import Predictor

_FILE = re.compile(r"(?P<name>[^@]+)@(?P<tag>[1-9][0-9]*)\.safetensors")


def _folders() -> list[Path]:
    """Where weights may lie, the checkout's own first."""
    package = Path(str(resources.files("oneshot_ml2")))
    checkout = package.parent / "pretrained"
    return [folder for folder in (checkout, package / "data" / "pretrained") if folder.is_dir()]


def _shipped() -> dict[tuple[str, int], Path]:
    """Files by name and tag, sorted."""
    found: dict[tuple[str, int], Path] = {}
    for folder in _folders():
        for path in folder.iterdir():
            match = _FILE.fullmatch(path.name)
            if match:
                found.setdefault((match["name"], int(match["tag"])), path)
    return dict(sorted(found.items()))


def list_pretrained() -> list[str]:
    """The shipped weights with their tags, e.g. ``default@1``, sorted by name and tag."""
    return [f"{name}@{tag}" for name, tag in _shipped()]


def find_pretrained(name: str = "default") -> Path:
    """The weights file of a name, with a tag (``default@1``) or without (the highest).

    Raises:
        WeightsError: no such weights (names those there are).
    """
    bare, _, tag = name.partition("@")
    for (known, number), path in reversed(_shipped().items()):
        if bare == known and tag in ("", str(number)):
            return path
    names = list_pretrained()
    close = difflib.get_close_matches(name, [*names, *(known for known, _ in _shipped())], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    there = ", ".join(names) or "none: install the package again, or train some with `oneshot-ml2 train`"
    raise WeightsError(f"no pretrained weights {name!r}{hint} There are: {there}")


@functools.lru_cache(maxsize=8)
def load_pretrained(name: str = "default") -> Predictor:
    """The shipped network of a name; loaded once per process.

    Raises:
        WeightsError: no such weights, or weights that this version cannot use.
    """
    return Predictor.load(find_pretrained(name))
