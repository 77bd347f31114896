"""Layers of networks, and lists of workloads in TOML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.common.reading import read_toml
from oneshot_ml2.workload.checks import LARGEST, integer
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.workload.base import Workload


@dataclass(frozen=True)
class Layer:
    """A workload of a network or a list: its name there, and how often it occurs."""

    name: str
    workload: Workload
    count: int = 1


def read_layers(path: str | Path) -> list[Layer]:
    """The ``[[workload]]`` tables of a TOML file, each a workload's ``to_dict`` plus optional ``name`` and ``count``.

    Raises:
        WorkloadError: an unreadable file, broken TOML, an empty list, or an impossible workload (says which).
    """
    path = Path(path)
    data = read_toml(path, WorkloadError)
    tables = data.get("workload")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise WorkloadError(f"{path}: expected [[workload]] tables")
    if not tables:
        raise WorkloadError(f"{path}: no [[workload]] table in it; give a list of at least one layer")
    layers = []
    for index, table in enumerate(tables):
        values = dict(table)
        name = str(values.pop("name", index))
        try:
            count = integer("count", values.pop("count", 1), 1, LARGEST)
            layers.append(Layer(name, workload_from_dict(values), count))
        except WorkloadError as error:
            raise WorkloadError(f"{path}: workload {name}: {error}") from error
    return layers


def read_workloads(path: str | Path) -> list[Workload]:
    """The workloads of :func:`read_layers`, in the file's order.

    Raises:
        WorkloadError: as :func:`read_layers`.
    """
    return [layer.workload for layer in read_layers(path)]
