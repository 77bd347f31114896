"""Training data from corpora: rows of features and targets, by task."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.corpus.format import SAMPLERS, TaskSamples
from oneshot_ml2.corpus.read import Corpus, open_corpus
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import FeatureSet
    from oneshot_ml2.training.settings import Settings


@dataclass(frozen=True)
class Data:
    """A corpus as features, in memory or (``schedules``) mapped. Task t owns the samples offsets[t] to offsets[t + 1].

    ``tasks``: float32 (T, task features); ``schedules``: float32 (n, schedule features); ``valid``: bool (n,);
    ``timed``: bool (n,), valid and measured; ``guided``: bool (n,), drawn by exploration;
    ``log_bound``: float32 (n,), log LB, or of what `FeatureSet.beside` says; ``log_ratio``: float32 (n,),
    log(T / LB), or beside the same, 0 where not timed; ``shapes`` and
    ``accelerators``: what each task's workload and accelerator are, as hashable keys; ``digests``: of the corpora;
    ``kind``: of the schedule spaces; ``version``: of the features, None: the space's ``FEATURE_VERSION``.
    """

    tasks: NDArray[np.float32]
    schedules: NDArray[np.float32]
    offsets: NDArray[np.int64]
    valid: NDArray[np.bool_]
    timed: NDArray[np.bool_]
    guided: NDArray[np.bool_]
    log_bound: NDArray[np.float32]
    log_ratio: NDArray[np.float32]
    shapes: list[Any]
    accelerators: list[Any]
    digests: list[str]
    kind: str = DEFAULT_KIND
    version: int | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def seen(self) -> FeatureSet:
        """The features."""
        features = space_kind(self.kind).features
        return features.FEATURE_SETS[features.FEATURE_VERSION if self.version is None else self.version]

    def rows(self, t: int) -> slice:
        """The samples of a task."""
        return slice(int(self.offsets[t]), int(self.offsets[t + 1]))


def draw_unmeasured(
    space: ScheduleSpace, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Canonical knob values (<= n, knobs) drawn for `Settings.validity_samples`, and whether each lowers (<= n,)."""
    drawn = np.unique(space.canonical(rng.integers(0, len(space), size=8 * n)))
    values, bound = space.values(drawn), space.record.features.candidates_at(space, drawn).bound
    order = np.argsort(bound, kind="stable")
    places = (rng.random(n - n // 2) ** 2 * len(order)).astype(np.int64)
    chosen = np.unique(np.concatenate([rng.choice(len(drawn), size=n // 2), order[places]]))
    return values[chosen], space.validity(drawn[chosen]) == Reason.VALID


# What a task contributes to `Data`: column -> dtype; ``schedules`` is the only large one.
_COLUMNS = {
    "schedules": np.float32,
    "valid": np.bool_,
    "timed": np.bool_,
    "guided": np.bool_,
    "log_bound": np.float32,
    "log_ratio": np.float32,
}


def _version_of(corpora: Sequence[Corpus], settings: Settings) -> int:
    """The version of the features that tell the accelerators of corpora apart, or that `Settings.waits` asks for.

    Raises:
        CorpusError: a space that has no such features.
    """
    features = space_kind(corpora[0].kind).features
    if settings.waits:
        if (version := max(features.FEATURE_SETS)) == features.HLS_FEATURE_VERSION:
            raise CorpusError(f"the space {corpora[0].kind!r} knows nothing of waiting; train without `waits`")
        return version
    hls = any(corpus.accelerator(t).hls is not None for corpus in corpora for t in range(len(corpus)))
    return features.HLS_FEATURE_VERSION if hls else features.FEATURE_VERSION


def _columns_of(task: TaskSamples, version: int, validity_samples: int, seed: int) -> dict[str, NDArray[Any]]:
    """`_COLUMNS` of a task's samples and of ``validity_samples`` more schedules, and ``task``, its own features."""
    space = task.space()
    values, valid = np.array(task.values, dtype=np.int64, order="C"), task.valid
    timed, cycles, guided = valid, task.cycles, task.sampler == SAMPLERS.index("explore")
    if validity_samples:
        rng = np.random.default_rng([seed, 2, int(task.id, 16)])
        more, lowers = draw_unmeasured(space, validity_samples, rng)
        values, valid = np.concatenate([values, more]), np.concatenate([valid, lowers])
        timed, guided = (np.concatenate([flags, np.zeros(len(more), dtype=bool)]) for flags in (timed, guided))
        cycles = np.concatenate([cycles, np.full(len(more), -1)])
    features = space.record.features
    block = np.empty((len(values), len(features.FEATURE_SETS[version].schedule)), dtype=np.float32)
    encoder = features.Encoder.of(space, version)
    given = encoder.candidates(np.arange(len(values)), values)
    encoder.encode(given, block)
    bound, seen = given.bound, features.FEATURE_SETS[version]
    if seen.beside:
        bound = bound * np.exp2(block[:, seen.schedule.index(seen.beside)].astype(np.float64))
    ratio = np.where(timed, np.log(np.maximum(cycles, 1) / bound), 0.0)
    columns = {
        "task": features.task_features(space, version),
        "schedules": block,
        "valid": valid,
        "timed": timed,
        "guided": guided,
        "log_bound": np.log(bound),
        "log_ratio": ratio,
    }
    return {name: column.astype(_COLUMNS.get(name, np.float32)) for name, column in columns.items()}


def make_data(
    tasks: Iterable[TaskSamples],
    digests: list[str],
    validity_samples: int = 0,
    seed: int = 0,
    version: int | None = None,
) -> Data:
    """Features and targets of measured tasks, and ``validity_samples`` more schedules of each, see `Settings`.

    ``version``: of the features, None: the space's ``FEATURE_VERSION``.

    Raises:
        CorpusError: no task has a sample.
    """
    tables, shapes, chips, kind = [], [], [], DEFAULT_KIND
    for task in tasks:
        if len(task):
            kind = task.kind
            own = space_kind(kind).features.FEATURE_VERSION if version is None else version
            tables.append(_columns_of(task, own, validity_samples, seed))
            shapes.append(task.workload.shape_key)
            chips.append(task.accelerator)
    if not tables:
        raise _no_samples()
    offsets = np.concatenate(([0], np.cumsum([len(table["valid"]) for table in tables]))).astype(np.int64)
    joined = {name: np.concatenate([table[name] for table in tables]) for name in _COLUMNS}
    return Data(
        tasks=np.array([table["task"] for table in tables]),
        offsets=offsets,
        shapes=shapes,
        accelerators=chips,
        digests=digests,
        kind=kind,
        version=version,
        **joined,
    )


def _no_samples() -> CorpusError:
    return CorpusError("no samples to train on; collect some with `oneshot-ml2 collect`")


def _open_all(paths: Sequence[str | Path]) -> list[Corpus]:
    """Corpora of this version's spaces, all of one kind.

    Raises:
        CorpusError: a corpus that is damaged, foreign, or of another space.
    """
    corpora: list[Corpus] = []
    for path in paths:
        corpora.append(open_corpus(path).of_today())
        if corpora[-1].kind != corpora[0].kind:
            kinds = f"{corpora[0].kind!r} and {corpora[-1].kind!r}"
            raise CorpusError(f"{path}: corpora of the spaces {kinds}; train on one kind at a time")
    return corpora


def read_data(paths: Sequence[str | Path], settings: Settings) -> Data:
    """Features of one or several corpora (files or folders of shards), in memory.

    Raises:
        CorpusError: a corpus that is damaged, foreign, or of another space.
    """
    corpora = _open_all(paths)
    tasks = itertools.chain.from_iterable(corpora)
    try:
        digests = [corpus.digest for corpus in corpora]
        version = _version_of(corpora, settings)
        return make_data(tasks, digests, settings.validity_samples, settings.seed, version)
    finally:
        for corpus in corpora:
            corpus.close()


def write_features(paths: Sequence[str | Path], settings: Settings, folder: str | Path) -> None:
    """Features of corpora as files that `map_features` reads, made one task after another; nothing is done if they are
    there already.

    Raises:
        CorpusError: see `read_data`; or no task has a sample.
    """
    folder = Path(folder)
    corpora = _open_all(paths)
    try:
        digests = [corpus.digest for corpus in corpora]
        kind, version = corpora[0].kind, _version_of(corpora, settings)
        made_of = [kind, version, digests, settings.validity_samples, settings.seed]
        head = folder / "head.json"
        if _made_of(head) == made_of:
            return
        head.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        rows, shapes, chips, lengths = [], [], [], []
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _COLUMNS}
            for task in itertools.chain.from_iterable(corpora):
                if not len(task):
                    continue
                table = _columns_of(task, version, settings.validity_samples, settings.seed)
                for name, file in files.items():
                    file.write(np.ascontiguousarray(table[name]).data)
                rows.append(table["task"].tolist())
                shapes.append(task.workload.shape_key)
                chips.append(task.accelerator.to_json())
                lengths.append(len(table["valid"]))
            # The head says that they are complete, so they are on the disk before it.
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        if not lengths:
            raise _no_samples()
    finally:
        for corpus in corpora:
            corpus.close()
    content = {"made_of": made_of, "tasks": rows, "shapes": shapes, "accelerators": chips, "lengths": lengths}
    write_whole(head, json.dumps(content))


def _made_of(head: Path) -> Any:
    """What the features beside ``head`` are made of; None if they are not whole."""
    try:
        return read_json(head)["made_of"]
    except (OneShotError, KeyError, TypeError, IndexError):
        return None


def map_features(folder: str | Path) -> Data:
    """What `write_features` wrote; the features of the schedules stay on the disk until they are used."""
    folder = Path(folder)
    head = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    offsets = np.concatenate(([0], np.cumsum(head["lengths"]))).astype(np.int64)
    small = {name: dtype for name, dtype in _COLUMNS.items() if name != "schedules"}
    columns: dict[str, Any] = {name: np.fromfile(folder / f"{name}.bin", dtype=dtype) for name, dtype in small.items()}
    kind, version, digests, *_ = head["made_of"]
    shape = (int(offsets[-1]), len(space_kind(kind).features.FEATURE_SETS[version].schedule))
    # Copy on write: torch takes arrays that may be written to.
    mapped = np.memmap(folder / "schedules.bin", dtype=np.float32, mode="c", shape=shape)
    known = {text: Accelerator.from_json(text) for text in set(head["accelerators"])}
    return Data(
        tasks=np.array(head["tasks"], dtype=np.float32),
        schedules=np.asarray(mapped),
        offsets=offsets,
        shapes=[_as_tuple(shape) for shape in head["shapes"]],
        accelerators=[known[text] for text in head["accelerators"]],
        digests=digests,
        kind=kind,
        version=version,
        **columns,
    )


def _as_tuple(value: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def split_tasks(data: Data, settings: Settings) -> dict[str, NDArray[np.int64]]:
    """Tasks for training and for validation, by workload shape and by accelerator, never by sample.

    ``train``: neither is held out; ``workload``: an unseen workload on a seen accelerator; ``both``: both unseen.
    Tasks of seen workloads on unseen accelerators belong to none, so that ``both`` stays unseen by half of its pairs.
    """
    return split(data.shapes, data.accelerators, settings)


def split(
    shapes: Sequence[Any], accelerators: Sequence[Accelerator], settings: Settings
) -> dict[str, NDArray[np.int64]]:
    """`split_tasks` of tasks (T,) by the shapes of their workloads and their accelerators."""
    rng = np.random.default_rng([settings.seed, 17])
    different = sorted(set(shapes))
    # Corpora keep accelerators with their further keys in order; files have them in any.
    texts = [dataclasses.replace(chip, extra=tuple(sorted(chip.extra))).to_json() for chip in accelerators]
    chips = sorted(set(texts))
    held = rng.permutation(len(different))[: round(settings.held_workloads * len(different))]
    held_shapes = {different[i] for i in held}
    held_chips = {chips[i] for i in rng.permutation(len(chips))[: min(settings.held_accelerators, len(chips) - 1)]}
    new_shape = np.array([shape in held_shapes for shape in shapes])
    new_chip = np.array([text in held_chips for text in texts])
    return {
        "train": np.flatnonzero(~new_shape & ~new_chip),
        "workload": np.flatnonzero(new_shape & ~new_chip),
        "accelerator": np.flatnonzero(~new_shape & new_chip),
        "both": np.flatnonzero(new_shape & new_chip),
    }


def draw_rows(rng: np.random.Generator, begin: int, end: int, n: int) -> NDArray[np.int64]:
    """``n`` of the rows begin..end, different ones if there are as many."""
    return np.asarray(begin + rng.choice(end - begin, size=n, replace=bool(end - begin < n)))
