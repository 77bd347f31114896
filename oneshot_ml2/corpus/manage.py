"""Checks, merges and splits corpora."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common import hdf5
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.corpus.format import AGAIN, LAYOUT
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.corpus.write import file_digest, write_corpus
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload

if TYPE_CHECKING:
    from oneshot_ml2.corpus.format import TaskSamples


def verify_corpus(path: str | Path) -> dict[str, Any]:
    """Read everything: checksums of files and tasks, offsets, enumerations, no schedule twice in a task.

    Returns:
        The counts of files, tasks and samples, and the corpus digest, JSON-able.

    Raises:
        CorpusError: the first thing that is wrong, and what to do.
    """
    with open_corpus(path) as corpus:
        for task in corpus:
            if len(np.unique(task.values, axis=0)) != len(task):
                raise CorpusError(f"{corpus.path}: task {task.id} holds a schedule twice; collect it anew")
        for i, index in enumerate(corpus._indices):
            file = corpus._file(i)
            with hdf5.checked(index.path, CorpusError, AGAIN):
                columns = {name: file[name][:] for name, (dtype, _) in LAYOUT.items() if dtype != "|O"}
            columns |= {name: getattr(index, name) for name in ("workloads", "accelerators", "provenance")}
            if file_digest([index.kind, index.space_version, list(index.knobs)], columns) != index.sha256:
                raise CorpusError(f"{index.path}: does not match its checksum; delete it and collect its tasks again")
        counts = corpus.counts
        return {
            "path": str(path),
            "files": len(corpus.files),
            "tasks": len(corpus),
            "samples": int(counts.sum()),
            "digest": corpus.digest,
        }


def merge_corpora(sources: Sequence[str | Path], out: str | Path) -> None:
    """Merge files and folders into one file, tasks in the order of their ids. The file is made in memory.

    Raises:
        CorpusError: see :func:`open_corpus` and :func:`write_corpus`.
    """
    tasks: list[TaskSamples] = []
    for source in sources:
        with open_corpus(source) as corpus:
            tasks += corpus
    write_corpus(out, sorted(tasks, key=lambda task: task.id))


def split_corpus(
    source: str | Path,
    out: str | Path,
    workloads: Sequence[Workload] = (),
    accelerators: Sequence[Accelerator] = (),
) -> dict[str, int]:
    """Split by task, never by sample, into up to four files in the folder ``out``.

    ``train.h5``: tasks of neither list; ``workloads.h5`` and ``accelerators.h5``: tasks whose workload (by shape, as
    design 5 defines "unseen") or accelerator is listed; ``both.h5``: both. The tasks' ``split`` is set to the file's
    stem, and a part without tasks is not written.

    Returns:
        Part -> number of its tasks.

    Raises:
        CorpusError: see :func:`open_corpus`; or a part is there already.
    """
    shapes, chips = {workload.shape_key for workload in workloads}, set(accelerators)
    names = {(False, False): "train", (True, False): "workloads", (False, True): "accelerators", (True, True): "both"}
    parts: dict[str, list[TaskSamples]] = {name: [] for name in names.values()}
    with open_corpus(source) as corpus:
        for task in corpus:
            name = names[task.workload.shape_key in shapes, task.accelerator in chips]
            parts[name].append(dataclasses.replace(task, split=name))
    folder = Path(out)
    targets = {name: folder / f"{name}.h5" for name in parts}
    there = [str(target) for target in targets.values() if target.exists()]
    if there:
        raise CorpusError(f"{there[0]} is there already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot make {folder}: {error.strerror}") from error
    for name, tasks in parts.items():
        if tasks:
            write_corpus(targets[name], sorted(tasks, key=lambda task: task.id))
    return {name: len(tasks) for name, tasks in parts.items()}
