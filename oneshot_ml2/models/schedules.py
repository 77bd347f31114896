"""The schedules of a model's layers: picked, or given in a file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import parse_json, read_text
from oneshot_ml2.models import executable
from oneshot_ml2.models.ir import Node
from oneshot_ml2.models.quantize.quantize import Quantized
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND
from oneshot_ml2.spaces.registry import backend as schedule_backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick


def read_schedules(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ``schedules.json`` of a compiled model.

    Raises:
        ModelError: unreadable, or none.
    """
    text = read_text(path, ModelError)
    try:
        data = parse_json(text, "its text")
        entries = data["layers"]
        known = data["schema"] == executable.SCHEDULES_SCHEMA
        if not known or not all({"layer", "workload", "schedule"} <= set(entry) for entry in entries):
            raise ValueError(f"schema {data['schema']}")
    except (OneShotError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{path} is no schedules.json of a compiled model ({error})") from error
    return list(entries)


def _pinned(entry: Mapping[str, Any], node: Node, chip: Accelerator, weights: str | Path | None) -> Pick:
    """The schedule of an entry of ``schedules.json`` as a pick.

    Raises:
        ModelError: it is for another workload, or not legal on this accelerator.
    """
    begin = time.perf_counter()
    kind = str(entry.get("space", DEFAULT_KIND))
    try:
        version = schedule_backend(kind).SPACE_VERSION
        if entry.get("space_version") != version:
            raise ModelError(f"it is of version {entry.get('space_version')} of its space, this is {version}")
        if workload_from_dict(entry["workload"]) != node.attrs["workload"]:
            raise ModelError("it is for another workload")
        space = ScheduleSpace(node.attrs["workload"], chip, kind)
        schedule = Schedule(kind, tuple(entry["schedule"].items()))
        index = space.index_of(schedule)
        program = space.lower(index)
        scores = picking.predictor_of(weights).score(space, np.array([index]))
        return picking.as_pick(space, index, program, scores, "pinned", begin)
    except (OneShotError, AttributeError) as error:
        raise ModelError(f"the schedule given for layer {node.name} does not fit: {error}") from error


def pick_layers(
    quantized: Quantized,
    chip: Accelerator,
    weights: str | Path | None,
    schedules: Sequence[Mapping[str, Any]],
    describe: Callable[[str], None],
) -> tuple[Quantized, dict[str, Pick]]:
    """A pick for every layer that the VTA can take; equal workloads share one. Layers without any go to the host.

    Raises:
        ModelError: a given schedule does not fit its layer, or there is no such layer.
    """
    picks: dict[str, Pick] = {}
    pinned = {str(entry["layer"]): entry for entry in schedules}
    there = [node.name for node in quantized.graph.nodes if node.attrs.get("workload") is not None]
    strange = sorted(set(pinned) - set(there))
    if strange:
        raise ModelError(f"a schedule for no such layer: {unknown('layer', strange[0], there)}")
    layers = [node for node in quantized.graph.nodes if node.attrs.get("workload") is not None]
    free = [node.attrs["workload"] for node in layers if node.name not in pinned]
    names = {node.attrs["workload"]: node.name for node in reversed(layers)}
    found = picking.pick_all(free, chip, weights, lambda workload: describe(f"pick {names[workload]}"))
    nodes = []
    for node in quantized.graph.nodes:
        workload = node.attrs.get("workload")
        if workload is not None and node.name in pinned:
            picks[node.output] = _pinned(pinned[node.name], node, chip, weights)
        elif workload is not None:
            result = found[workload]
            if isinstance(result, InvalidSchedule):
                lost = {"workload": None, "reason": str(result), "unscheduled": True}
                node = dataclasses.replace(node, attrs={**node.attrs, **lost})
            else:
                picks[node.output] = result
        nodes.append(node)
    graph = dataclasses.replace(quantized.graph, nodes=tuple(nodes))
    return dataclasses.replace(quantized, graph=graph), picks
