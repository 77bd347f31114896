"""What belongs together, by keys."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


def equal_places(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions of equal keys, ascending, in the order in which each key comes first."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())
