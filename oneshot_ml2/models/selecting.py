"""Layers by their names and by shell patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown

if TYPE_CHECKING:
    from oneshot_ml2.workload.lists import Layer


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of ``patterns`` (as in a shell), in their order; all of them if there are none.

    Raises:
        OneShotError: a pattern matches nothing (names the layers there are, with the closest one).
    """
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise OneShotError(unknown("layer", pattern, names, cutoff=0.4))
    return [name for name in names if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def select_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> list[Layer]:
    """The layers whose names match one of ``patterns``; see `matching`."""
    names = set(matching([layer.name for layer in layers], patterns))
    return [layer for layer in layers if layer.name in names]
