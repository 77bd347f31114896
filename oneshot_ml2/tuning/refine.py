"""Better schedules of layers by a few measurements on a device, for those who have one.

Layers share one budget of trials. The first trial of each is the schedule that it has, so that none gets worse; each
further batch goes to the layer that can still gain the most.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.devices.base import Device, measurable
from oneshot_ml2.models.folder import MANIFEST, SCHEDULES
from oneshot_ml2.models.schedules import read_schedules
from oneshot_ml2.network import picking
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.spaces import space
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Domain, Outcomes, Tuner
from oneshot_ml2.tuning.measure import Health, Limits
from oneshot_ml2.tuning.prior import Evidence
from oneshot_ml2.tuning.registry import find_tuner, make_tuner
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.workload import base
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.lists import Layer
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.tuning.log import History

# What a batch without a gain leaves of a layer's hope.
_DECAY = 0.5


@dataclass(frozen=True)
class Refined:
    """A layer after refinement.

    Attributes:
        names: of all layers with this workload; ``count``: how often they occur in all.
        start: the schedule it had (None: it had none), ``start_cycles``: measured; -1 if invalid or not measured.
        best: the fastest valid schedule measured (None: there was none), ``best_cycles``: its cycles.
        bound: the engine bound, cycles.
    """

    names: tuple[str, ...]
    count: int
    space: ScheduleSpace
    start: Schedule | None
    start_cycles: int
    best: Schedule | None
    best_cycles: int
    bound: int
    history: History

    @property
    def improved(self) -> bool:
        """A measured schedule is better than the one it had."""
        return self.best is not None and (self.start_cycles < 0 or self.best_cycles < self.start_cycles)

    def entry(self, name: str) -> dict[str, Any]:
        """The layer in a ``schedules.json``; None of its schedules is valid: the one it had."""
        chosen = self.best if self.best is not None else self.start
        assert chosen is not None
        return {
            "layer": name,
            "workload": self.space.workload.to_dict(),
            "space": self.space.kind,
            "space_version": backend(self.space.kind).version_of(self.space.workload),
            "schedule": dict(chosen.knobs),
            "source": "refined" if self.improved else "kept",
            "predicted_cycles": None,
            "measured_cycles": self.best_cycles if self.best_cycles > 0 else None,
            "device": self.history.header.device,
        }

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "layers": list(self.names),
            "count": self.count,
            "workload": self.space.workload.to_dict(),
            "trials": len(self.history),
            "programs": self.history.programs,
            "invalid_rate": tables.finite(self.history.invalid_rate),
            "reasons": self.history.reasons(),
            "start": None if self.start is None else dict(self.start.knobs),
            "start_cycles": self.start_cycles if self.start_cycles > 0 else None,
            "best": None if self.best is None else dict(self.best.knobs),
            "best_cycles": self.best_cycles if self.best_cycles > 0 else None,
            "engine_bound": self.bound,
        }


class StartWith:
    """A tuner whose first proposal is a given schedule, alone."""

    def __init__(self, index: int, behind: Tuner) -> None:
        self._index: int | None = index
        self._behind = behind

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`."""
        if self._index is None:
            return self._behind.propose(n)
        first, self._index = np.array([self._index], dtype=np.int64), None
        return first

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._behind.observe(results)


@dataclass
class _Work:
    """A workload at work: ``hope`` is the share of its distance to the bound that it may still gain."""

    names: tuple[str, ...]
    count: int
    space: ScheduleSpace
    start: int | None
    bound: int
    run: Run
    hope: float = 1.0

    @property
    def gain(self) -> float:
        """Cycles of the model that may still be gained; infinite before the first valid trial."""
        if self.run.exhausted:
            return -1.0
        best = self.run.history.best
        return float("inf") if best is None else self.count * max(best[1] - self.bound, 0) * self.hope

    def batch(self, most: int) -> int:
        """A batch of trials, and what it leaves of the hope."""
        before = self.run.history.best
        made = self.run.step(most)
        # At once, as the tuners of other layers may learn from it, too.
        self.run.observe()
        after = self.run.history.best
        if before is not None and after is not None and made:
            self.hope = 1.0 if after[1] < before[1] else self.hope * _DECAY ** (made / self.run.limits.batch)
        return made


def refine(
    layers: Sequence[Layer],
    accelerator: Accelerator,
    device: Device,
    trials: int,
    *,
    tuner: str = "ml2-warm",
    kind: str = DEFAULT_KIND,
    seed: int = 0,
    limits: Limits | None = None,
    network: Predictor | None = None,
    starts: Mapping[str, Schedule] | None = None,
    logs: Path | None = None,
    progress: bool = False,
) -> list[Refined]:
    """Refine layers with a budget of ``trials`` in all; equal workloads are one.

    Args:
        starts: schedules that layers have, by name; the others begin with the network's pick (default space).
        network: of the tuner and the picks; None: the shipped one, where it is needed.
        logs: folder that gets a log for each workload; a run with the logs of an earlier one goes on where it ended.

    Raises:
        OneShotError: fewer trials than workloads, a log of another run or that another process writes, a space or
            tuner that does not fit.
        DeviceError: the device fails on one schedule after another, see `Limits.failures`.
    """
    groups: dict[Workload, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.workload, []).append(layer)
    if trials < len(groups):
        raise OneShotError(f"{trials} trials for {len(groups)} different layers; give at least one for each")
    limits = limits or Limits(checked=True)
    health = Health(limits.failures)
    evidence = None
    if find_tuner(tuner)[1].shares_evidence:
        evidence = Evidence(predictor_of(network, kind, accelerator.design))
    with (
        ExitStack() as stack,
        tqdm(total=trials, unit="trial", file=sys.stderr, leave=False, disable=None if progress else True) as bar,
    ):
        work = []
        for workload, members in groups.items():
            bar.set_description(f"prepare {members[0].name}")
            given = next((starts[m.name] for m in members if starts and m.name in starts), None)
            space = ScheduleSpace(workload, accelerator, kind)
            item = _prepare(space, members, given, device, tuner, seed, limits, network, logs, evidence, health)
            stack.enter_context(item.run)
            work.append(item)
        # One trial each, the schedule that it has; with the network another, which it ranks first by what all layers
        # have said of the board; after that by gain.
        _spend(work, trials, 1 if evidence is None else 2, bar)
        return [_refined(item) for item in work]


def _spend(work: Sequence[_Work], trials: int, rounds: int, bar: tqdm[Any]) -> None:
    """Give each ``rounds`` single trials, and the rest of ``trials`` in batches to what can still gain the most."""
    made = 0
    for item in [*work] * rounds:
        if made < trials:
            made += item.batch(1)
            bar.update(made - bar.n)
    while made < trials:
        item = max(work, key=lambda candidate: candidate.gain)
        if item.gain < 0:
            break
        bar.set_description(f"refine {item.names[0]}")
        made += item.batch(trials - made)
        bar.update(made - bar.n)


def _prepare(
    space: ScheduleSpace,
    members: Sequence[Layer],
    given: Schedule | None,
    device: Device,
    tuner: str,
    seed: int,
    limits: Limits,
    network: Predictor | None,
    logs: Path | None,
    evidence: Evidence | None,
    health: Health,
) -> _Work:
    among = measurable(device, space)
    start: int | None = None
    if given is not None:
        start = int(space.canonical(np.array([space.index_of(given)]))[0])
    elif space.kind == DEFAULT_KIND:
        start = picking.pick(space.workload, space.accelerator, network).index
    if among is not None and start not in among:
        # It was not measured.
        start = None

    def make() -> Tuner:
        found = make_tuner(tuner, Domain.of(space, among), seed, network, limits.checked, evidence)
        return found if start is None else StartWith(start, found)

    name = re.sub(r"[^\w.-]", "_", members[0].name)
    log = None if logs is None else logs / f"{name}.jsonl"

    def predict(indices: NDArray[np.int64]) -> NDArray[np.float64]:
        assert evidence is not None
        return np.log(evidence.calibrated().score(space, indices).cycles)

    known = None if evidence is None else predict
    run = Run(space, make, device, tuner, seed, limits, log, {"start": start}, health, known)
    bound = engine_bound(space.workload, space.accelerator).bound
    return _Work(
        tuple(m.name for m in members), sum(m.count for m in members), space, start, bound, run
    )  # fmt: skip


def _refined(item: _Work) -> Refined:
    history = item.run.history
    best, done = history.best, history.outcomes
    measured = -1
    if item.start is not None:
        tried = np.flatnonzero(done.indices == item.start)
        measured = int(done.cycles[tried[0]]) if len(tried) and item.start not in history.doubted else -1
    return Refined(
        names=item.names,
        count=item.count,
        space=item.space,
        start=None if item.start is None else item.space.schedule(item.start),
        start_cycles=measured,
        best=None if best is None else item.space.schedule(best[0]),
        best_cycles=-1 if best is None else best[1],
        bound=item.bound,
        history=history,
    )


def table(results: Sequence[Refined]) -> str:
    """A row for each workload, then totals."""
    header = ("layer", "x", "shape", "trials", "invalid", "start", "best", "gain", "of bound", "schedule")
    rows = []
    for result in results:
        more = f" +{len(result.names) - 1}" if len(result.names) > 1 else ""
        known = result.start_cycles > 0 and result.best_cycles > 0
        rows.append(
            (
                result.names[0] + more,
                str(result.count),
                base.short_workload(result.space.workload),
                str(len(result.history)),
                tables.percent(result.history.invalid_rate) if len(result.history) else "",
                f"{result.start_cycles:,}" if result.start_cycles > 0 else "-",
                f"{result.best_cycles:,}" if result.best_cycles > 0 else "-",
                f"{1 - result.best_cycles / result.start_cycles:.2%}" if known else "-",
                tables.percent(result.bound / result.best_cycles) if result.best_cycles > 0 else "-",
                "none valid" if result.best is None else space.short_schedule(result.best),
            )
        )
    lines = [tables.table(header, rows, left=("layer", "shape", "schedule"))]
    known_all = [r for r in results if r.start_cycles > 0 and r.best_cycles > 0]
    if known_all:
        start = sum(r.count * r.start_cycles for r in known_all)
        best = sum(r.count * r.best_cycles for r in known_all)
        lines.append(f"\n{start:,} cycles before, {best:,} after: {1 - best / start:.2%} gained.")
    trials, programs = (sum(counts) for counts in zip(*((len(r.history), r.history.programs) for r in results)))
    if programs != trials:
        lines.append(f"\n{trials:,} trials took {programs:,} programs: what failed or was best is measured again.")
    return "\n".join(lines)


def read_compiled(folder: Path) -> tuple[list[Layer], Accelerator, dict[str, Schedule]]:
    """The layers of a compiled model's folder, its accelerator, and the layers' schedules.

    Raises:
        ModelError: no compiled model, or one that is damaged.
    """
    entries = read_schedules(folder / SCHEDULES)
    try:
        described = dict(read_json(folder / MANIFEST)["accelerator"])
        chip = replace(Accelerator.from_json(described), name=str(described["name"]))
        layers = [Layer(str(entry["layer"]), workload_from_dict(entry["workload"])) for entry in entries]
        starts = {
            str(entry["layer"]): Schedule(str(entry["space"]), tuple((k, int(v)) for k, v in entry["schedule"].items()))
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OneShotError) as error:
        raise ModelError(f"{folder} is no compiled model, or damaged ({error}); compile it again") from error
    return layers, chip, starts
