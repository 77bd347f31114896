"""All operators by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.max_pool2d import MaxPool2d

Workload: TypeAlias = Conv2d | Conv2dTranspose | MaxPool2d | Dense | BatchMatmul

_OPERATORS: dict[str, type[Workload]] = {
    kind.op: kind for kind in (Conv2d, Conv2dTranspose, MaxPool2d, Dense, BatchMatmul)
}


def workload_from_dict(data: Mapping[str, Any]) -> Workload:
    """The workload that ``to_dict`` wrote, by its ``op``.

    Raises:
        WorkloadError: no or an unknown ``op``, an unknown or missing key, or a value out of range.
    """
    op = data.get("op") if isinstance(data, Mapping) else None
    if not isinstance(op, str) or op not in _OPERATORS:
        raise WorkloadError(f"op is {op!r}; allowed: {', '.join(_OPERATORS)}")
    workload: Workload = _OPERATORS[op].from_dict(data)
    return workload
