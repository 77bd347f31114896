"""Corpora of measured schedules: immutable, checksummed HDF5 shards, or one file merged from them.

Layout of a file (schema 1)::

    /samples/{values,reason,cycles,busy,sampler}   flat columns, sorted by task
    /tasks/{offsets,workload,accelerator,provenance,split,id,digest}   CSR offsets and rows of the tables
    /workloads  /accelerators  /provenance         JSON texts

Knob values are stored, never an index alone, with the kind and version of the space that they belong to.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from oneshot_ml2 import hdf5
from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.errors import CorpusError, OneShotError
from oneshot_ml2.files import write_whole
from oneshot_ml2.reading import parse_json
from oneshot_ml2.schedule import REASONS_VERSION, Reason, ScheduleSpace
from oneshot_ml2.workload import Workload, workload_from_dict

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "oneshot-ml2 corpus"
SCHEMA = 1
SAMPLERS = ("random", "explore")

# Dataset -> (numpy kind and size, dimensions).
_LAYOUT: dict[str, tuple[str, int]] = {
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
_SAMPLE_COLUMNS = ("values", "reason", "cycles", "busy", "sampler")
_UNITS = {
    "samples/cycles": "clock cycles; -1 where invalid",
    "samples/busy": "busy clock cycles of load, compute, store",
    "samples/values": "knob values, columns named by the attribute `knobs`",
    "samples/reason": "0 valid, else why not: the attribute `reasons`",
    "samples/sampler": "how the schedule was drawn: position in the attribute `samplers`",
    "tasks/offsets": "task t owns samples offsets[t] to offsets[t + 1]",
    "tasks/digest": "SHA-256 of the task and its samples",
}
_FORM = "a corpus of oneshot-ml2"
_AGAIN = "delete it, and run the same `collect` again to measure its tasks"
_CHUNK_ROWS = 1 << 14


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
        for column in _SAMPLE_COLUMNS:
            dtype = _LAYOUT[f"samples/{column}"][0]
            hasher.update(np.ascontiguousarray(getattr(self, column), dtype=dtype).data)
        return hasher.hexdigest()

    def space(self) -> ScheduleSpace:
        """The space that the samples belong to; ``space().index(values)`` gives their indices."""
        return ScheduleSpace(self.workload, self.accelerator, self.kind)


def _check_samples(task: TaskSamples, where: str) -> None:
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


# Writing -------------------------------------------------------------------------------------


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
        f"samples/{name}": np.concatenate([getattr(task, name) for task in tasks]) for name in _SAMPLE_COLUMNS
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
    columns = {path: column.astype(_LAYOUT[path][0]) for path, column in columns.items()}
    return columns | {"workloads": workloads, "accelerators": accelerators, "provenance": provenance}


def _file_digest(head: Sequence[Any], columns: dict[str, Any]) -> str:
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
        _check_samples(task, str(path))
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
                "sha256": _file_digest([kind, version, list(knobs)], columns),
            }
        )
        for name, column in columns.items():
            if isinstance(column, list):
                dataset = file.create_dataset(name, data=column, dtype=h5py.string_dtype())
            elif len(column) == 0:
                dataset = file.create_dataset(name, data=column)
            else:
                chunk = (min(len(column), _CHUNK_ROWS), *column.shape[1:])
                dataset = file.create_dataset(
                    name, data=column, chunks=chunk, compression="gzip", compression_opts=4, shuffle=True
                )
            if name in _UNITS:
                dataset.attrs["units"] = _UNITS[name]
        file.flush()
        image = file.id.get_file_image()
    atomic_write(path, image)


# Reading -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _workload(text: str) -> Workload:
    return workload_from_dict(parse_json(text, "a workload"))


@functools.lru_cache(maxsize=1024)
def _accelerator(text: str) -> Accelerator:
    data = parse_json(text, "an accelerator")
    return Accelerator.from_json(data["config"], name=str(data["name"]))


def _provenance(text: str) -> dict[str, Any]:
    data = parse_json(text, "a provenance")
    if not isinstance(data, dict):
        raise ValueError("a provenance that is no object")
    return data


@dataclass(frozen=True)
class _Index:
    """Everything of a file but its samples."""

    path: Path
    kind: str
    space_version: int
    knobs: tuple[str, ...]
    sha256: str
    offsets: NDArray[np.int64]
    workload_rows: NDArray[np.int32]
    accelerator_rows: NDArray[np.int32]
    provenance_rows: NDArray[np.int32]
    splits: list[str]
    ids: list[str]
    digests: list[str]
    workloads: list[str]
    accelerators: list[str]
    provenance: list[str]


def _check_layout(file: h5py.File, path: Path) -> None:
    """Raise hdf5.Unfit unless the file holds exactly the datasets of the schema, plainly stored and whole."""
    found = []
    for name, (dtype, dimensions) in _LAYOUT.items():
        dataset = hdf5.dataset(file, name)
        if dataset.dtype.str != dtype or dataset.ndim != dimensions:
            raise hdf5.Unfit(f"{name} is {dataset.dtype} with {dataset.ndim} dimensions; the file is foreign")
        if dtype == "|O" and h5py.check_string_dtype(dataset.dtype) is None:
            raise hdf5.Unfit(f"{name} holds no texts; the file is foreign")
        found.append(dataset)
    hdf5.check_sizes(found, path)


def _read_index(path: Path, file: h5py.File) -> _Index:
    if hdf5.attribute(file, "format", str, _FORM) != FORMAT:
        raise CorpusError(f"{path}: not {_FORM}")
    schema = hdf5.attribute(file, "schema", int, _FORM)
    if schema != SCHEMA:
        advice = "upgrade oneshot-ml2" if schema > SCHEMA else "collect it anew, or use the version that wrote it"
        raise CorpusError(f"{path}: corpus schema {schema}, this version reads {SCHEMA}: {advice}")
    if hdf5.attribute(file, "reasons_version", int, _FORM) > REASONS_VERSION:
        raise CorpusError(f"{path}: written with newer invalidity reasons: upgrade oneshot-ml2")
    _check_layout(file, path)
    size = path.stat().st_size
    texts = {name: hdf5.read_texts(file[name], size) for name in ("workloads", "accelerators", "provenance")}
    columns = {name: file[f"tasks/{name}"][:] for name in ("offsets", "workload", "accelerator", "provenance")}
    labels = {name: [text.decode() for text in file[f"tasks/{name}"][:].tolist()] for name in ("split", "id", "digest")}
    knobs = parse_json(hdf5.attribute(file, "knobs", str, _FORM), f"{path}: its knob names are damaged", CorpusError)
    if not isinstance(knobs, list) or not all(isinstance(knob, str) for knob in knobs):
        raise CorpusError(f"{path}: knob names are damaged; delete the file and collect its tasks again")
    index = _Index(
        path=path,
        kind=hdf5.attribute(file, "kind", str, _FORM),
        space_version=hdf5.attribute(file, "space_version", int, _FORM),
        knobs=tuple(knobs),
        sha256=hdf5.attribute(file, "sha256", str, _FORM),
        offsets=columns["offsets"],
        workload_rows=columns["workload"],
        accelerator_rows=columns["accelerator"],
        provenance_rows=columns["provenance"],
        splits=labels["split"],
        ids=labels["id"],
        digests=labels["digest"],
        **texts,
    )
    _check_index(index, {name: file[f"samples/{name}"].shape for name in _SAMPLE_COLUMNS})
    return index


def _check_index(index: _Index, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CorpusError unless the columns, those of the samples by their ``shapes``, fit each other."""
    path, offsets, samples, tasks = index.path, index.offsets, shapes["reason"][0], len(index.offsets) - 1
    expected = {"values": (samples, len(index.knobs)), "busy": (samples, 3)}
    for name in _SAMPLE_COLUMNS:
        if shapes[name] != expected.get(name, (samples,)):
            raise CorpusError(f"{path}: samples/{name} has another length than its fellows; the file is damaged")
    # Differences of offsets out of range could wrap around.
    ordered = tasks >= 1 and ((offsets >= 0) & (offsets <= samples)).all() and (np.diff(offsets) >= 0).all()
    if not ordered or offsets[0] != 0 or offsets[-1] != samples:
        raise CorpusError(f"{path}: task offsets do not fit the samples; the file is damaged")
    for name, rows, table in (
        ("workload", index.workload_rows, index.workloads),
        ("accelerator", index.accelerator_rows, index.accelerators),
        ("provenance", index.provenance_rows, index.provenance),
    ):
        if len(rows) != tasks or (rows < 0).any() or (rows >= len(table)).any():
            raise CorpusError(f"{path}: tasks/{name} points outside its table; the file is damaged")
    if any(len(column) != tasks for column in (index.splits, index.ids, index.digests)):
        raise CorpusError(f"{path}: the columns of /tasks differ in length; the file is damaged")


class Corpus:
    """A corpus opened for reading: a sequence of tasks, whose samples are read and checked when asked for.

    Task ``t`` is ``corpus[t]``; iterating goes through the files one after the other. Instances can be pickled
    (data loader workers open the files for themselves).
    """

    def __init__(self, path: Path, indices: list[_Index]) -> None:
        self.path = path
        self._indices = indices
        self._places = [(i, t) for i, index in enumerate(indices) for t in range(len(index.ids))]
        self._open: tuple[int, h5py.File] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def kind(self) -> str:
        """The space's kind, e.g. ``full``."""
        return self._indices[0].kind

    @property
    def space_version(self) -> int:
        return self._indices[0].space_version

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the columns of ``values``."""
        return self._indices[0].knobs

    @property
    def files(self) -> list[Path]:
        """The files of the corpus, in order."""
        return [index.path for index in self._indices]

    @property
    def ids(self) -> list[str]:
        """The tasks' ids, see :func:`task_id`."""
        return [self._indices[i].ids[t] for i, t in self._places]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each task, int64 (tasks,)."""
        return np.concatenate([np.diff(index.offsets) for index in self._indices])

    @property
    def digest(self) -> str:
        """SHA-256 of the whole corpus; the same however it is cut into files, in whatever order."""
        lines = sorted(digest for index in self._indices for digest in index.digests)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def workload(self, t: int) -> Workload:
        """The workload of task ``t``."""
        i, row = self._places[t]
        index = self._indices[i]
        return self._parse(index, _workload, index.workloads[index.workload_rows[row]])

    def accelerator(self, t: int) -> Accelerator:
        """The accelerator of task ``t``."""
        i, row = self._places[t]
        index = self._indices[i]
        return self._parse(index, _accelerator, index.accelerators[index.accelerator_rows[row]])

    def split(self, t: int) -> str:
        """What task ``t`` is for, e.g. ``train``."""
        i, row = self._places[t]
        return self._indices[i].splits[row]

    @staticmethod
    def _parse(index: _Index, parser: Callable[[str], Any], text: str) -> Any:
        try:
            return parser(text)
        except (OneShotError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorpusError(f"{index.path}: a workload, accelerator or provenance is broken: {error}") from error

    def __getitem__(self, t: int) -> TaskSamples:
        """Read task ``t`` and check its digest.

        Raises:
            CorpusError: the file is damaged.
        """
        i, row = self._places[t]
        index = self._indices[i]
        begin, end = int(index.offsets[row]), int(index.offsets[row + 1])
        with hdf5.checked(index.path, CorpusError, _AGAIN):
            columns = {name: self._file(i)[f"samples/{name}"][begin:end] for name in _SAMPLE_COLUMNS}
        task = TaskSamples(
            workload=self.workload(t),
            accelerator=self.accelerator(t),
            kind=index.kind,
            space_version=index.space_version,
            knobs=index.knobs,
            split=index.splits[row],
            provenance=self._parse(index, _provenance, index.provenance[index.provenance_rows[row]]),
            **columns,
        )
        _check_samples(task, str(index.path))
        if task.id != index.ids[row] or task.digest != index.digests[row]:
            raise CorpusError(
                f"{index.path}: task {index.ids[row]} does not match its checksum; "
                "delete the file and collect its tasks again"
            )
        return task

    def __iter__(self) -> Iterator[TaskSamples]:
        for t in range(len(self)):
            yield self[t]

    def _file(self, i: int) -> h5py.File:
        if self._open is None or self._open[0] != i:
            self.close()
            path = self._indices[i].path
            file = hdf5.open_file(path, CorpusError, _AGAIN)
            self._open = (i, file)
            # It may be another file than the one whose index was read.
            with hdf5.checked(path, CorpusError, _AGAIN):
                _check_layout(file, path)
        return self._open[1]

    def close(self) -> None:
        """Close the file that the last read left open; the next read opens it again."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def check_space(self) -> None:
        """Raise CorpusError if the samples belong to another version of the schedule space than the installed one."""
        from oneshot_ml2.schedule import backend

        installed = backend(self.kind).SPACE_VERSION
        if installed != self.space_version:
            raise CorpusError(
                f"{self.path}: samples of space {self.kind!r} version {self.space_version}, "
                f"installed is {installed}: collect the corpus anew"
            )

    def info(self) -> dict[str, Any]:
        """What the corpus holds, JSON-able: counts, invalidity by reason, splits, samplers and provenance."""
        reasons: Counter[int] = Counter()
        samplers: Counter[int] = Counter()
        for i in range(len(self._indices)):
            with hdf5.checked(self._indices[i].path, CorpusError, _AGAIN):
                file = self._file(i)
                reason, sampler = file["samples/reason"][:], file["samples/sampler"][:]
            reasons.update(dict(enumerate(np.bincount(reason).tolist())))
            samplers.update(dict(enumerate(np.bincount(sampler).tolist())))
        if max(reasons, default=0) >= len(Reason) or max(samplers, default=0) >= len(SAMPLERS):
            raise CorpusError(f"{self.path}: unknown reason or sampler; `oneshot-ml2 corpus verify` finds the file")
        samples = sum(reasons.values())
        invalid = samples - reasons[Reason.VALID]
        provenance = [self._parse(index, _provenance, text) for index in self._indices for text in index.provenance]
        keys = ("device", "seed", "commit", "package")
        return {
            "path": str(self.path),
            "files": len(self._indices),
            "schema": SCHEMA,
            "kind": self.kind,
            "space_version": self.space_version,
            "knobs": list(self.knobs),
            "tasks": len(self),
            "workloads": len({self.workload(t) for t in range(len(self))}),
            "accelerators": len({self.accelerator(t) for t in range(len(self))}),
            "samples": samples,
            "invalid_share": invalid / samples if samples else 0.0,
            "reasons": {Reason(key).label: count for key, count in sorted(reasons.items()) if count},
            "samplers": {SAMPLERS[key]: count for key, count in sorted(samplers.items()) if count},
            "splits": dict(sorted(Counter(split for index in self._indices for split in index.splits).items())),
            "provenance": {key: sorted({str(entry.get(key, "")) for entry in provenance}) for key in keys},
            "digest": self.digest,
        }


def open_corpus(path: str | Path) -> Corpus:
    """Open a corpus file or a folder of shards; the structure is checked now, samples when they are read.

    Raises:
        CorpusError: no corpus there, a damaged, foreign or other-schema file, shards of different spaces, or a task
            that occurs twice.
    """
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files:
        raise CorpusError(f"{path}: no corpus files (*.h5); make some with `oneshot-ml2 collect`")
    indices = []
    for name in files:
        with (
            hdf5.checked(name, CorpusError, _AGAIN),
            hdf5.open_file(name, CorpusError, "give a corpus file or a folder of shards") as file,
        ):
            indices.append(_read_index(name, file))
    first = indices[0]
    owner: dict[str, Path] = {}
    for index in indices:
        if (index.kind, index.space_version, index.knobs) != (first.kind, first.space_version, first.knobs):
            raise CorpusError(
                f"{index.path}: space {index.kind} version {index.space_version}, but {first.path.name} has "
                f"{first.kind} version {first.space_version}; keep one folder for each"
            )
        for name_of_task in index.ids:
            if name_of_task in owner:
                raise CorpusError(
                    f"task {name_of_task} is in {owner[name_of_task]} and in {index.path}; remove one of them"
                )
            owner[name_of_task] = index.path
    return Corpus(path, indices)


# Whole-corpus operations ---------------------------------------------------------------------


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
            with hdf5.checked(index.path, CorpusError, _AGAIN):
                columns = {name: file[name][:] for name, (dtype, _) in _LAYOUT.items() if dtype != "|O"}
            columns |= {name: getattr(index, name) for name in ("workloads", "accelerators", "provenance")}
            if _file_digest([index.kind, index.space_version, list(index.knobs)], columns) != index.sha256:
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
