"""Reads corpora."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import hdf5
from oneshot_ml2.common.errors import CorpusError, OneShotError, OneShotWarning
from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.corpus.format import (
    AGAIN,
    FORMAT,
    LAYOUT,
    SAMPLE_COLUMNS,
    SAMPLERS,
    SCHEMA,
    TaskSamples,
    check_samples,
)
from oneshot_ml2.spaces.registry import backend
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import REASONS_VERSION, Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from typing_extensions import Self

_FORM = "a corpus of oneshot-ml2"


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
    for name, (dtype, dimensions) in LAYOUT.items():
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
    _check_index(index, {name: file[f"samples/{name}"].shape for name in SAMPLE_COLUMNS})
    return index


def _check_index(index: _Index, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CorpusError unless the columns, those of the samples by their ``shapes``, fit each other."""
    path, offsets, samples, tasks = index.path, index.offsets, shapes["reason"][0], len(index.offsets) - 1
    expected = {"values": (samples, len(index.knobs)), "busy": (samples, 3)}
    for name in SAMPLE_COLUMNS:
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

    def __init__(self, path: Path, indices: list[_Index], places: list[tuple[int, int]] | None = None) -> None:
        self.path = path
        self._indices = indices
        every = [(i, t) for i, index in enumerate(indices) for t in range(len(index.ids))]
        self._places = every if places is None else places
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
        lengths = [np.diff(index.offsets) for index in self._indices]
        return np.array([lengths[i][t] for i, t in self._places], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole corpus; the same however it is cut into files, in whatever order."""
        lines = sorted(self._indices[i].digests[t] for i, t in self._places)
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
        with hdf5.checked(index.path, CorpusError, AGAIN):
            columns = {name: self._file(i)[f"samples/{name}"][begin:end] for name in SAMPLE_COLUMNS}
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
        check_samples(task, str(index.path))
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
            file = hdf5.open_file(path, CorpusError, AGAIN)
            self._open = (i, file)
            # It may be another file than the one whose index was read.
            with hdf5.checked(path, CorpusError, AGAIN):
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

    def of_today(self) -> Corpus:
        """The tasks whose schedules are those of the installed space; the same files.

        Raises:
            CorpusError: there are none.

        Warns:
            OneShotWarning: others are left out.
        """
        space = backend(self.kind)
        given = self.space_version
        changed = set[tuple[int, int]]()
        for i, index in enumerate(self._indices):
            for row, text in enumerate(index.workloads):
                if given > space.SPACE_VERSION or space.version_of(self._parse(index, _workload, text)) > given:
                    changed.add((i, row))
        places = [(i, t) for i, t in self._places if (i, int(self._indices[i].workload_rows[t])) not in changed]
        if not changed or len(places) == len(self._places):
            return self
        what = f"samples of space {self.kind!r} version {given}, installed is {space.SPACE_VERSION}"
        if not places:
            raise CorpusError(f"{self.path}: {what}: collect the corpus anew")
        left = len(self._places) - len(places)
        text = f"{self.path}: {left} of {len(self)} tasks are {what}; they are left out, collect them anew"
        warnings.warn(text, OneShotWarning, stacklevel=2)
        return Corpus(self.path, self._indices, places)

    def info(self) -> dict[str, Any]:
        """What the corpus holds, JSON-able: counts, invalidity by reason, splits, samplers and provenance."""
        reasons: Counter[int] = Counter()
        samplers: Counter[int] = Counter()
        for i in range(len(self._indices)):
            with hdf5.checked(self._indices[i].path, CorpusError, AGAIN):
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
            hdf5.checked(name, CorpusError, AGAIN),
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
