"""The schedules of a model's layers: picked, or given in a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import parse_json, read_text
from oneshot_ml2.models import executable
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND
from oneshot_ml2.spaces.registry import backend as schedule_backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick
    from oneshot_ml2.vta.reasons import InvalidSchedule
    from oneshot_ml2.workload.lists import Layer


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


def _pinned(entry: Mapping[str, Any], layer: Layer, chip: Accelerator, weights: str | Path | None) -> Pick:
    """The schedule of an entry of ``schedules.json`` as a pick.

    Raises:
        ModelError: it is for another workload, or not legal on this accelerator.
    """
    begin = time.perf_counter()
    kind = str(entry.get("space", DEFAULT_KIND))
    try:
        if workload_from_dict(entry["workload"]) != layer.workload:
            raise ModelError("it is for another workload")
        version = schedule_backend(kind).version_of(layer.workload)
        if entry.get("space_version") != version:
            raise ModelError(f"it is of version {entry.get('space_version')} of its space, this is {version}")
        space = ScheduleSpace(layer.workload, chip, kind)
        schedule = Schedule(kind, tuple(entry["schedule"].items()))
        index = space.index_of(schedule)
        program = space.lower(index)
        network = picking.knowing(picking.predictor_of(weights, design=chip.design), space)
        scores = network.score(space, np.array([index]))
        return picking.as_pick(space, index, program, scores, "pinned", begin)
    except (OneShotError, AttributeError) as error:
        raise ModelError(f"the schedule given for layer {layer.name} does not fit: {error}") from error


def pick_layers(
    layers: Sequence[Layer],
    chip: Accelerator,
    weights: str | Path | None,
    schedules: Sequence[Mapping[str, Any]],
    describe: Callable[[str], None],
) -> list[Pick | InvalidSchedule]:
    """For each layer its pick, or why it has none; equal workloads share one.

    Args:
        schedules: entries of a ``schedules.json``: the layers of their names get these schedules, no pick.
        describe: told what is done.

    Raises:
        ModelError: a given schedule does not fit its layer, or there is no such layer.
    """
    pinned = {str(entry["layer"]): entry for entry in schedules}
    there = [layer.name for layer in layers]
    strange = sorted(set(pinned) - set(there))
    if strange:
        raise ModelError(f"a schedule for no such layer: {unknown('layer', strange[0], there)}")
    free = [layer.workload for layer in layers if layer.name not in pinned]
    names = {layer.workload: layer.name for layer in reversed(layers)}
    found = picking.pick_all(free, chip, weights, lambda workload: describe(f"pick {names[workload]}"))
    return [
        _pinned(pinned[layer.name], layer, chip, weights) if layer.name in pinned else found[layer.workload]
        for layer in layers
    ]
