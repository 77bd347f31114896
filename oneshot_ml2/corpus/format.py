"""Corpora of measured schedules: immutable, checksummed HDF5 shards, or one file merged from them.

Layout of a file (schema 1)::

    /samples/{values,reason,cycles,busy,sampler}   flat columns, sorted by task
    /tasks/{offsets,workload,accelerator,provenance,split,id,digest}   CSR offsets and rows of the tables
    /workloads  /accelerators  /provenance         JSON texts

Knob values are stored, never an index alone, with the kind and version of the space that they belong to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload

FORMAT = "oneshot-ml2 corpus"
SCHEMA = 1
SAMPLERS = ("random", "explore")

# Dataset -> (numpy kind and size, dimensions).
LAYOUT: dict[str, tuple[str, int]] = {
    "samples/values": ("<i4", 2),
    "samples/reason": ("|u1", 1),
    "samples/cycles": ("<i8", 1),
    "samples/busy": ("<i8", 2),
    "samples/sampler": ("|u1", 1),
    "tasks/offsets": ("<i8", 1),
    "tasks/workload": ("<i4", 1),
    "tasks/accelerator": ("<i4", 1),
    "tasks/provenance": ("<i4", 1),
    "tasks/split": ("|S16", 1),
    "tasks/id": ("|S16", 1),
    "tasks/digest": ("|S64", 1),
    "workloads": ("|O", 1),
    "accelerators": ("|O", 1),
    "provenance": ("|O", 1),
}
SAMPLE_COLUMNS = ("values", "reason", "cycles", "busy", "sampler")
UNITS = {
    "samples/cycles": "clock cycles; -1 where invalid",
    "samples/busy": "busy clock cycles of load, compute, store",
    "samples/values": "knob values, columns named by the attribute `knobs`",
    "samples/reason": "0 valid, else why not: the attribute `reasons`",
    "samples/sampler": "how the schedule was drawn: position in the attribute `samplers`",
    "tasks/offsets": "task t owns samples offsets[t] to offsets[t + 1]",
    "tasks/digest": "SHA-256 of the task and its samples",
}
AGAIN = "delete it, and run the same `collect` again to measure its tasks"
CHUNK_ROWS = 1 << 14


def workload_text(workload: Workload) -> str:
    """The canonical JSON of a workload; equal workloads have equal texts."""
    return json.dumps(workload.to_dict(), sort_keys=True)


def accelerator_text(accelerator: Accelerator) -> str:
    """The JSON of an accelerator together with its name."""
    return json.dumps({"name": accelerator.name, "config": json.loads(accelerator.to_json())}, sort_keys=True)


def task_id(workload: Workload, accelerator: Accelerator, kind: str) -> str:
    """16 hex digits that identify a task; the accelerator's name and unknown JSON keys play no part."""
    config = json.loads(accelerator.to_json())
    for key, _ in accelerator.extra:
        config.pop(key, None)
    text = json.dumps([kind, workload.to_dict(), config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskSamples:
    """The samples of one (workload, accelerator) pair.

    ``values``: int32 (n, knobs), columns as ``knobs``; ``reason``: uint8 (n,), `Reason`; ``cycles``: int64 (n,),
    -1 where invalid; ``busy``: int64 (n, 3), busy cycles of load, compute, store; ``sampler``: uint8 (n,),
    position in `SAMPLERS`. ``split`` says what the task is for, e.g. ``train``; ``provenance`` is JSON-able.
    """

    workload: Workload
    accelerator: Accelerator
    kind: str
    space_version: int
    knobs: tuple[str, ...]
    values: NDArray[np.int32]
    reason: NDArray[np.uint8]
    cycles: NDArray[np.int64]
    busy: NDArray[np.int64]
    sampler: NDArray[np.uint8]
    split: str
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.reason)

    @cached_property
    def id(self) -> str:
        """See :func:`task_id`."""
        return task_id(self.workload, self.accelerator, self.kind)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(n,): whether the schedule ran."""
        return self.reason == Reason.VALID

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the task and its samples, whatever file they are in and whenever they were measured."""
        head = json.dumps([self.id, self.kind, self.space_version, list(self.knobs), self.split])
        hasher = hashlib.sha256(head.encode())
        for column in SAMPLE_COLUMNS:
            dtype = LAYOUT[f"samples/{column}"][0]
            hasher.update(np.ascontiguousarray(getattr(self, column), dtype=dtype).data)
        return hasher.hexdigest()

    def space(self) -> ScheduleSpace:
        """The space that the samples belong to; ``space().index(values)`` gives their indices."""
        return ScheduleSpace(self.workload, self.accelerator, self.kind)


def check_samples(task: TaskSamples, where: str) -> None:
    """Raise CorpusError unless the columns fit each other and hold only what the enumerations know."""
    n, columns = len(task), len(task.knobs)
    shapes = {"values": (n, columns), "reason": (n,), "cycles": (n,), "busy": (n, 3), "sampler": (n,)}
    for name, shape in shapes.items():
        if getattr(task, name).shape != shape:
            raise CorpusError(f"{where}: task {task.id}: {name} is {getattr(task, name).shape}, expected {shape}")
    if n == 0:
        return
    if int(task.reason.max()) >= len(Reason) or int(task.sampler.max()) >= len(SAMPLERS):
        raise CorpusError(f"{where}: task {task.id}: unknown reason or sampler; upgrade oneshot-ml2 to read it")
    if ((task.cycles > 0) != task.valid).any() or (task.busy < 0).any():
        raise CorpusError(f"{where}: task {task.id}: cycles do not agree with validity; collect the corpus anew")
