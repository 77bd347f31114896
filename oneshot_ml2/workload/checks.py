"""Checks of the values that operators are made of."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_ml2.common.errors import WorkloadError

LARGEST = 1 << 20


def integer(what: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int within ``low..high``, else a WorkloadError that names it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise WorkloadError(f"{what} is {value!r}; allowed: an integer {low} to {high}") from None
    if not low <= number <= high:
        raise WorkloadError(f"{what} is {number}; allowed: {low} to {high}")
    return number


def integers(what: str, value: Any, lengths: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """An int or a sequence of one of ``lengths``, as a tuple of ints within ``low..high``."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if len(value) not in lengths:
            counts = " or ".join(str(n) for n in lengths)
            raise WorkloadError(f"{what} is {value!r}; allowed: an integer or {counts} of them")
        return tuple(integer(what, item, low, high) for item in value)
    return (integer(what, value, low, high),) * 2


def check_keys(what: str, data: Any, known: set[str], required: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise WorkloadError(f"{what} is {data!r}; allowed: a table of {', '.join(sorted(known))}")
    unknown = sorted(set(data) - known)
    if unknown:
        raise WorkloadError(f"{what}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    missing = sorted(required - set(data))
    if missing:
        raise WorkloadError(f"{what}: missing {', '.join(missing)}")
