"""Writes corpora."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.corpus.format import (
    CHUNK_ROWS,
    FORMAT,
    LAYOUT,
    SAMPLE_COLUMNS,
    SAMPLERS,
    SCHEMA,
    UNITS,
    accelerator_text,
    check_samples,
    workload_text,
)
from oneshot_ml2.vta.reasons import REASONS_VERSION, Reason

if TYPE_CHECKING:
    from oneshot_ml2.corpus.format import TaskSamples


def atomic_write(path: Path, content: bytes) -> None:
    """`files.write_whole`, with an error that says what to do.

    Raises:
        CorpusError: the file cannot be written, e.g. the disk is full; nothing is left behind.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        advice = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        raise CorpusError(f"cannot write {path}: {error.strerror or error}{advice}") from error


def _intern(texts: Iterable[str]) -> tuple[list[str], list[int]]:
    """The different texts in order of appearance, and for each given one its row among them."""
    rows: dict[str, int] = {}
    return_rows = [rows.setdefault(text, len(rows)) for text in texts]
    return list(rows), return_rows


def _columns(tasks: Sequence[TaskSamples]) -> dict[str, Any]:
    """All datasets of a file, by path: numpy arrays in their stored dtypes, or lists of JSON texts."""
    lengths = [len(task) for task in tasks]
    workloads, workload_rows = _intern(workload_text(task.workload) for task in tasks)
    accelerators, accelerator_rows = _intern(accelerator_text(task.accelerator) for task in tasks)
    provenance, provenance_rows = _intern(json.dumps(task.provenance, sort_keys=True) for task in tasks)
    columns: dict[str, Any] = {
        f"samples/{name}": np.concatenate([getattr(task, name) for task in tasks]) for name in SAMPLE_COLUMNS
    }
    columns |= {
        "tasks/offsets": np.concatenate(([0], np.cumsum(lengths))),
        "tasks/workload": np.array(workload_rows),
        "tasks/accelerator": np.array(accelerator_rows),
        "tasks/provenance": np.array(provenance_rows),
        "tasks/split": np.array([task.split.encode() for task in tasks]),
        "tasks/id": np.array([task.id.encode() for task in tasks]),
        "tasks/digest": np.array([task.digest.encode() for task in tasks]),
    }
    columns = {path: column.astype(LAYOUT[path][0]) for path, column in columns.items()}
    return columns | {"workloads": workloads, "accelerators": accelerators, "provenance": provenance}


def file_digest(head: Sequence[Any], columns: dict[str, Any]) -> str:
    """SHA-256 of a file's space and of the bytes of all its columns."""
    hasher = hashlib.sha256(json.dumps(list(head)).encode())
    for path in sorted(columns):
        column = columns[path]
        hasher.update(path.encode())
        hasher.update(json.dumps(column).encode() if isinstance(column, list) else np.ascontiguousarray(column).data)
    return hasher.hexdigest()


def write_corpus(path: str | Path, tasks: Iterable[TaskSamples]) -> None:
    """Write a corpus file (or shard) atomically. All tasks are of one space kind and version.

    Raises:
        CorpusError: no tasks, tasks of different spaces, a task twice, columns that do not fit, or a failed write.
    """
    path = Path(path)
    tasks = list(tasks)
    if not tasks:
        raise CorpusError(f"{path}: no tasks to write")
    spaces = {(task.kind, task.space_version, task.knobs) for task in tasks}
    if len(spaces) > 1:
        names = ", ".join(sorted(f"{kind} version {version}" for kind, version, _ in spaces))
        raise CorpusError(f"{path}: tasks of different schedule spaces ({names}); keep one corpus for each")
    twice = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if twice:
        raise CorpusError(f"{path}: task {twice[0]} occurs twice; leave one of its sources out")
    for task in tasks:
        check_samples(task, str(path))
        if len(task.split.encode()) > 16:
            raise CorpusError(f"{path}: split {task.split!r}; allowed: a name of at most 16 bytes")
        limit = np.iinfo(np.int32).max
        if task.values.size and int(np.abs(task.values.astype(np.int64)).max()) > limit:
            raise CorpusError(f"{path}: task {task.id}: a knob value beyond 32 bits")
    kind, version, knobs = spaces.pop()
    columns = _columns(tasks)
    # The file is made in memory: a full disk then shows in a plain write, not inside HDF5.
    with h5py.File(f"{path}.image", "w", driver="core", backing_store=False) as file:
        file.attrs.update(
            {
                "format": FORMAT,
                "schema": SCHEMA,
                "kind": kind,
                "space_version": version,
                "knobs": json.dumps(list(knobs)),
                "reasons": json.dumps({reason.label: int(reason) for reason in Reason}),
                "reasons_version": REASONS_VERSION,
                "samplers": json.dumps(SAMPLERS),
                "sha256": file_digest([kind, version, list(knobs)], columns),
            }
        )
        for name, column in columns.items():
            if isinstance(column, list):
                dataset = file.create_dataset(name, data=column, dtype=h5py.string_dtype())
            elif len(column) == 0:
                dataset = file.create_dataset(name, data=column)
            else:
                chunk = (min(len(column), CHUNK_ROWS), *column.shape[1:])
                dataset = file.create_dataset(
                    name, data=column, chunks=chunk, compression="gzip", compression_opts=4, shuffle=True
                )
            if name in UNITS:
                dataset.attrs["units"] = UNITS[name]
        file.flush()
        image = file.id.get_file_image()
    atomic_write(path, image)
