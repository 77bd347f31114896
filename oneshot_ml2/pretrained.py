"""Weights that come with the package: found in the wheel's data, or in ``pretrained/`` of the checkout."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_ml2.errors import WeightsError

if TYPE_CHECKING:
    from oneshot_ml2.predictor import Predictor


def _folders() -> list[Path]:
    """Where weights may lie, the checkout's own first."""
    package = Path(str(resources.files("oneshot_ml2")))
    checkout = package.parent / "pretrained"
    return [folder for folder in (checkout, package / "data" / "pretrained") if folder.is_dir()]


def list_pretrained() -> list[str]:
    """Names of the shipped weights, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.safetensors")})


def find_pretrained(name: str = "default") -> Path:
    """The weights file of a name.

    Raises:
        WeightsError: no such weights (names those there are).
    """
    for folder in _folders():
        path = folder / f"{name}.safetensors"
        if path.is_file():
            return path
    names = list_pretrained()
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    there = ", ".join(names) or "none: install the package again, or train some with `oneshot-ml2 train`"
    raise WeightsError(f"no pretrained weights {name!r}{hint} There are: {there}")


@functools.lru_cache(maxsize=8)
def load_pretrained(name: str = "default") -> Predictor:
    """The shipped network of a name; loaded once per process.

    Raises:
        WeightsError: no such weights, or weights that this version cannot use.
    """
    from oneshot_ml2.predictor import Predictor

    return Predictor.load(find_pretrained(name))
