"""All operators by name: one file of this folder each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.records import modules
from oneshot_ml2.workload.base import Workload


@cache
def operators() -> dict[str, type[Workload]]:
    """Name -> operator, of every class of the folder's files that says its ``op``."""
    found = [
        kind
        for module in modules("oneshot_ml2.workload")
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Workload) and "op" in vars(kind)
    ]
    return {kind.op: kind for kind in sorted(set(found), key=lambda kind: kind.op)}


def workload_from_dict(data: Mapping[str, Any]) -> Workload:
    """The workload that ``to_dict`` wrote, by its ``op``.

    Raises:
        WorkloadError: no or an unknown ``op``, an unknown or missing key, or a value out of range.
    """
    op = data.get("op") if isinstance(data, Mapping) else None
    if isinstance(op, str) and op not in operators():
        raise WorkloadError(unknown("op", op, operators()))
    if not isinstance(op, str):
        raise WorkloadError(f"op is {op!r}; allowed: {', '.join(operators())}")
    workload: Workload = operators()[op].from_dict(data)
    return workload
