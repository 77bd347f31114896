"""Labels of the task network in HDF5 shards: written whole or not at all, and read as data of others.

A shard holds families of accelerators, each with one workload, and a row for each member that has a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import hdf5
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.corpus.format import accelerator_text, workload_text
from oneshot_ml2.corpus.write import atomic_write
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend, space_kind
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.registry import workload_from_dict

FORMAT = "oneshot-ml2 task labels"
SCHEMA = 1
SRAMS = ("uop", "inp", "wgt", "acc")
_FORM = "a file of task labels"
ADVICE = "delete it, and run the same collection again"
# Dataset -> its stored numbers, and what they are; a row is a pair.
_COLUMNS = {
    "family": ("<i4", "row of workloads and accelerators"),
    "sizes": ("|i1", "log2 of the bytes of the micro-op, INP, WGT and ACC SRAM"),
    "cycles": ("<i8", "simulated cycles of the pick"),
    "least": ("<i8", "the least simulated cycles of the pick and of what the network ranks next"),
    "engine_bound": ("<i8", "cycles of the engine bound"),
    "closed": ("<f8", "closed forms of the best schedule by each of `objectives`, columns named by `summary`"),
}


@dataclass(frozen=True)
class Labels:
    """Labels of n pairs of F families.

    Attributes:
        workloads, accelerators: of each family (F,); an accelerator's SRAMs are those of one of its members.
        family: int32 (n,), the family of each pair.
        sizes: int8 (n, 4), log2 of the bytes of each of `SRAMS`.
        cycles, least: int64 (n,), simulated cycles of the pick, and the least that were found.
        engine_bound: int64 (n,), cycles.
        closed: float64 (n, objectives, columns), closed forms of the best schedule by each objective.
    """

    workloads: list[Workload]
    accelerators: list[Accelerator]
    family: NDArray[np.int32]
    sizes: NDArray[np.int8]
    cycles: NDArray[np.int64]
    least: NDArray[np.int64]
    engine_bound: NDArray[np.int64]
    closed: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.family)

    @classmethod
    def of_family(cls, workload: Workload, accelerator: Accelerator, rows: Sequence[dict[str, Any]]) -> Labels:
        """Those of one family; a row has each column but ``family``."""
        shapes = {"sizes": (len(SRAMS),), "closed": _closed_shape()}
        columns = {
            name: np.array([row[name] for row in rows], dtype=dtype).reshape(len(rows), *shapes.get(name, ()))
            for name, (dtype, _) in _COLUMNS.items()
            if name != "family"
        }
        return cls([workload], [accelerator], np.zeros(len(rows), dtype=np.int32), **columns)

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """All pairs of at least one part."""
        firsts = np.cumsum([0, *(len(part.workloads) for part in parts)])
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS if name != "family"
        }
        family = np.concatenate([part.family + first for part, first in zip(parts, firsts)]).astype(np.int32)
        workloads = [workload for part in parts for workload in part.workloads]
        accelerators = [accelerator for part in parts for accelerator in part.accelerators]
        return cls(workloads, accelerators, family, **columns)

    def members(self, family: int) -> list[Accelerator]:
        """The accelerators of a family's pairs."""
        rows = self.sizes[self.family == family].tolist()
        return [self.accelerators[family].with_srams(**dict(zip(SRAMS, row, strict=True))) for row in rows]


def _closed_shape() -> tuple[int, int]:
    families = space_kind(DEFAULT_KIND).families
    return len(families.OBJECTIVES), len(families.SUMMARY)


def _head() -> dict[str, Any]:
    """What a shard is of: another version's is refused."""
    families = space_kind(DEFAULT_KIND).families
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "space_version": backend(DEFAULT_KIND).SPACE_VERSION,
        "objectives": " ".join(families.OBJECTIVES),
        "summary": " ".join(families.SUMMARY),
    }


def write_labels(path: Path, labels: Labels, origin: str) -> None:
    """Write a shard; families without a label are in it, too. ``origin``: what collection it is of.

    Raises:
        CorpusError: the file cannot be written.
    """
    texts = {
        "workloads": [workload_text(workload) for workload in labels.workloads],
        "accelerators": [accelerator_text(accelerator) for accelerator in labels.accelerators],
    }
    # The file is made in memory: a full disk then shows in a plain write, not inside HDF5.
    with h5py.File(f"{path}.image", "w", driver="core", backing_store=False) as file:
        file.attrs.update(_head() | {"origin": origin})
        for name, column in texts.items():
            file.create_dataset(name, data=column, dtype=h5py.string_dtype())
        for name, (dtype, units) in _COLUMNS.items():
            packed = {"compression": "gzip", "shuffle": True} if len(labels) else {}
            made = file.create_dataset(name, data=getattr(labels, name).astype(dtype), **packed)
            made.attrs["units"] = units
        file.flush()
        image = file.id.get_file_image()
    atomic_write(path, image)


def read_origin(path: Path) -> str:
    """What collection a shard is of.

    Raises:
        CorpusError: unreadable, foreign, or of another version.
    """
    with hdf5.checked(path, CorpusError, ADVICE), hdf5.open_file(path, CorpusError, ADVICE) as file:
        _check_head(path, file)
        origin: str = hdf5.attribute(file, "origin", str, _FORM)
        return origin


def _check_head(path: Path, file: h5py.File) -> None:
    for name, wanted in _head().items():
        if hdf5.attribute(file, name, type(wanted), _FORM) != wanted:
            raise CorpusError(f"{path}: not {_FORM} of this version ({name} differs); collect anew")


def read_labels(path: Path) -> Labels:
    """A shard.

    Raises:
        CorpusError: unreadable, damaged, foreign, or of another version.
    """
    with hdf5.checked(path, CorpusError, ADVICE), hdf5.open_file(path, CorpusError, ADVICE) as file:
        _check_head(path, file)
        found = {name: hdf5.dataset(file, name) for name in ("workloads", "accelerators", *_COLUMNS)}
        hdf5.check_sizes(list(found.values()), path)
        size = path.stat().st_size
        workloads, accelerators = (
            [parse_json(text, str(path), CorpusError) for text in hdf5.read_texts(found.pop(name), size)]
            for name in ("workloads", "accelerators")
        )
        columns = {name: dataset[:] for name, dataset in found.items()}
    n, families = len(columns["family"]), len(workloads)
    shapes = {"sizes": (n, len(SRAMS)), "closed": (n, *_closed_shape())}
    for name, (dtype, _) in _COLUMNS.items():
        if columns[name].dtype.str != dtype or columns[name].shape != shapes.get(name, (n,)):
            raise CorpusError(f"{path}: {name} is damaged; {ADVICE}")
    inside = (columns["family"] >= 0) & (columns["family"] < families)
    sound = inside.all() and (columns["least"] > 0).all() and (columns["cycles"] >= columns["least"]).all()
    if len(accelerators) != families or not sound or not np.isfinite(columns["closed"]).all():
        raise CorpusError(f"{path}: its columns do not fit one another; {ADVICE}")
    return Labels(
        [workload_from_dict(workload) for workload in workloads],
        [Accelerator.from_json(chip["config"], name=chip["name"]) for chip in accelerators],
        **columns,
    )


def read_all(*folders: str | Path) -> Labels:
    """The pairs of all shards of some folders.

    Raises:
        CorpusError: a folder without shards, or one that `read_labels` refuses.
    """
    paths = []
    for folder in folders:
        found = sorted(Path(folder).glob("labels-*.h5"))
        if not found:
            raise CorpusError(f"{folder}: no labels (labels-*.h5) in it; collect some first")
        paths += found
    return Labels.joined([read_labels(path) for path in paths])
