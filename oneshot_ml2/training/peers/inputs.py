"""What peers see of schedules: the rows of corpora, and what One-Shot Tuner takes beside features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training.peers.base import Rows, Settings
from oneshot_ml2.workload.base import Workload

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates

# Peers know the default space.
_SPACE = space_kind(DEFAULT_KIND)
_FEATURES = _SPACE.features
FEATURE_VERSION = _FEATURES.FEATURE_VERSION
# How many features a task has, all that a schedule has with them, and inputs of `own_inputs`.
TASKS, ALL, OWN = len(_FEATURES.TASK_FEATURES), len(_FEATURES.FEATURES), len(_SPACE.schedules.KNOBS) + 8


def operations(workload: Workload) -> float:
    """Operations, two for each multiplication; of an operator without any, one for each tap of each output."""
    if workload.macs:
        return 2.0 * workload.macs
    taps = getattr(workload, "r", 1) * getattr(workload, "s", 1)
    return float(np.prod(workload.output_shape) * taps)


def own_inputs(space: ScheduleSpace, values: NDArray[np.int64]) -> NDArray[np.float32]:
    """What One-Shot Tuner takes beside loop features: knob values, shapes of weight and output, float32 (n, knobs + 8).

    Shapes are filled with zeros on the left to four sizes each; an operator without weights has zeros.
    """
    specs = space.workload.tensor_specs
    weight = specs["weight"][0] if "weight" in specs else ()
    shape = [*(0,) * (4 - len(weight)), *weight]
    output = space.workload.output_shape
    shape += [*(0,) * (4 - len(output)), *output]
    row = np.broadcast_to(np.array(shape, dtype=np.float32), (len(values), 8))
    return np.concatenate([values.astype(np.float32), row], axis=1)


def features(space: ScheduleSpace, given: Candidates) -> NDArray[np.float32]:
    """All features of candidates of a space, float32 (n, F)."""
    out = np.empty((len(given), ALL), dtype=np.float32)
    out[:, :TASKS] = _FEATURES.task_features(space)
    _FEATURES.Encoder.of(space).encode(given, out[:, TASKS:])
    return out


def read_rows(paths: Sequence[str | Path], settings: Settings) -> Rows:
    """A subsample of corpora (files or folders of shards): every ``settings.every``-th task, of each at most
    ``settings.samples`` valid samples.

    Raises:
        CorpusError: a damaged or foreign corpus, or no valid sample.
    """
    tables, own, cycles, work, lengths, digests = [], [], [], [], [], []
    number = itertools.count()
    for path in paths:
        with open_corpus(path).of_today() as corpus:
            digests.append(corpus.digest)
            for t in range(len(corpus)):
                if next(number) % settings.every:
                    continue
                task = corpus[t]
                places = np.flatnonzero(task.valid)
                if len(places) < 2:
                    continue
                rng = np.random.default_rng([settings.seed, int(task.id, 16)])
                places = np.sort(rng.permutation(places)[: settings.samples])
                space = task.space()
                values = np.array(task.values[places], dtype=np.int64, order="C")
                tables.append(features(space, _FEATURES.candidates_at(space, space.index(values))))
                own.append(own_inputs(space, values))
                cycles.append(task.cycles[places].astype(np.float64))
                work.append(operations(task.workload))
                lengths.append(len(places))
    if not lengths:
        raise CorpusError("no task with two valid samples to train on; collect some with `oneshot-ml2 collect`")
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Rows(np.concatenate(tables), np.concatenate(own), offsets, np.concatenate(cycles), np.array(work), digests)
