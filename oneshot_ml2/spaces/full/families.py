"""Accelerators that differ in their SRAMs alone: what no SRAM changes is computed once for all of them.

A schedule's closed forms do not depend on how large the SRAMs are, only on whether they hold what it keeps in them. So
the best schedule by a closed form is found for all sizes at once: the least of what needs no more of each memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.grouping import equal_places
from oneshot_ml2.spaces.full.features import Candidates, Encoder, candidates, no_hazard
from oneshot_ml2.spaces.full.knobs import FOLD_TAPS, KNOBS
from oneshot_ml2.spaces.full.totals import SUMMARY as SUMMARY
from oneshot_ml2.spaces.full.totals import column, totals_of
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.nest import MAX_INSNS, PORTABLE_UOPS, Nest, channel_blocks, make_nest

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload

Found = TypeVar("Found")
# The knobs' candidates and how many each has, see `features.candidates`.
Lists = tuple[NDArray[np.int64], NDArray[np.int64]]
# By what the best schedule is looked for: a guess, a floor, and a guess in which what has no second buffer overlaps
# with nothing.
OBJECTIVES = ("guess", "bound", "cautious")
# Memories that a schedule keeps something in, and the columns of `SUMMARY` that say which share of a data SRAM.
MEMORIES = ("INP", "WGT", "ACC", "micro-ops")
_USES = ("inp_use", "wgt_use", "acc_use")
_FOLD = KNOBS.index("fold")
_USE_COLUMNS = [SUMMARY.index(name) for name in _USES]


def family_key(accelerator: Accelerator) -> Hashable:
    """What accelerators of one family have in common: everything that takes time, and no size of an SRAM."""
    a = accelerator
    return (a.log_batch, a.log_block, a.bus_bits, a.burst_len_bits, a.memory_latency, a.instruction_queue, a.hls)


def sizes(accelerators: Sequence[Accelerator]) -> NDArray[np.int64]:
    """How much of each of `MEMORIES` accelerators have for a program, elements, int64 (m, 4)."""
    rows = [(a.inp_depth, a.wgt_depth, a.acc_depth, min(PORTABLE_UOPS, a.uop_depth)) for a in accelerators]
    return np.array(rows, dtype=np.int64).reshape(-1, len(MEMORIES))


def guess_of(summary: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cycles of schedules by closed forms (n, len(SUMMARY)), float64 (n,): what takes longest, and what is before it.

    `estimate`, but that a program which waits for its loads ends with its last step, and none beats its bound.
    """
    found = {name: column(summary, name) for name in SUMMARY}
    begin, load = found["head"], np.maximum(found["load"], found["read_beats"])
    waits = np.maximum(load, found["store"])
    by_compute = found["estimate"] > begin + found["first_load"] + waits + found["tail"]
    by_memory = begin + np.maximum(load + found["last_step"] + found["tail"], found["first_load"] + found["store"])
    return np.maximum(found["bound"], np.where(by_compute, found["estimate"], by_memory))


def cautious_of(summary: NDArray[np.float64]) -> NDArray[np.float64]:
    """`guess_of` schedules, float64 (n,), where loads into what has no second buffer overlap with nothing."""
    found = {name: column(summary, name) for name in ("head", "first_load", "compute", "load", "tail")}
    alone, exposed = column(summary, "serial_load"), column(summary, "exposed_store")
    waits = found["load"] + found["compute"] * np.minimum(alone / np.maximum(found["load"], 1.0), 1.0)
    work = np.maximum(found["compute"] + alone + exposed, waits)
    return np.maximum(guess_of(summary), np.where(alone + exposed > 0, found["head"] + work + found["tail"], 0.0))


def _with_limits(nest: Nest, limits: NDArray[np.int64]) -> Nest:
    """A nest, changed in place, with so much of each of `MEMORIES`."""
    nest["inp_depth"], nest["wgt_depth"], nest["acc_depth"], nest["uop_limit"] = limits.tolist()
    return nest


def nests(workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.record]:
    """The loop nests of a workload on the accelerators of one family, records (m,) of `nest.DTYPE`."""
    rows = np.repeat(np.array([make_nest(workload, accelerators[0])]), len(accelerators))
    depths = dict(zip(("inp_depth", "wgt_depth", "acc_depth", "uop_limit"), sizes(accelerators).T, strict=True))
    bits = {f"{name}_bits": [getattr(a, f"isa_{name}_bits") for a in accelerators] for name in ("inp", "wgt", "acc")}
    for name, values in (depths | bits).items():
        rows[name] = values
    return rows


def _listed(
    workload: Workload, accelerators: Sequence[Accelerator]
) -> Iterator[tuple[list[int], Nest, Candidates, Lists]]:
    """The families among accelerators of one block and batch: positions of the members, the nest with the largest of
    their memories, the schedules that those hold, legal or not, and the knobs' candidates of the widest."""
    widest = max(accelerators, key=lambda accelerator: (accelerator.acc_depth, accelerator.inp_depth))
    limits = sizes(accelerators).max(axis=0)
    space = ScheduleSpace(workload, widest)
    lists = candidates(space)
    encoder = Encoder(_with_limits(make_nest(workload, widest), limits), *lists, len(space), 0.0)
    indices, values = encoder.canonical()
    fits = encoder.fits(values)
    indices, values = indices[fits], values[fits]
    for places in equal_places(map(family_key, accelerators)):
        nest = _with_limits(make_nest(workload, accelerators[places[0]]), limits)
        own = Encoder(nest, *lists, len(space), 0.0, tables=encoder.tables)
        yield places, nest, own.candidates(indices, values), lists


def _only(found: Iterable[Found]) -> Found:
    """The one family among accelerators that are of one."""
    every = list(found)
    if len(every) != 1:
        raise ValueError("a family's accelerators differ in their SRAMs alone")
    return every[0]


def _needs(given: Candidates, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much of each of `MEMORIES` schedules keep, int64 (n, 4), elements; ``limits``: of the nest they are on."""
    uses = given.summary[:, _USE_COLUMNS] * limits[: len(_USE_COLUMNS)]
    return np.concatenate([uses, column(given.summary, "uops")[:, None]], axis=1).astype(np.int64)


def _on_member(given: Candidates, needs: NDArray[np.int64], accelerator: Accelerator) -> Candidates:
    """Schedules of a family that need so much, changed in place, as candidates of a member."""
    given.summary[:, _USE_COLUMNS] = needs[:, : len(_USES)] / sizes([accelerator])[0, : len(_USES)]
    return given


@dataclass(frozen=True)
class Listing:
    """All canonical schedules of a workload, legal or not, that the largest memories of a family hold.

    Attributes:
        workload: what is computed.
        lists: the knobs' candidates, see `features.candidates`.
        given: the schedules, with closed forms on the largest memories.
        needs: int64 (n, 4), how much of each of `MEMORIES` each keeps, elements.
    """

    workload: Workload
    lists: Lists
    given: Candidates
    needs: NDArray[np.int64]

    @classmethod
    def of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Listing:
        """The schedules for accelerators of one `family_key`; raises as `Family.of`."""
        _, _, given, lists = _only(_listed(workload, accelerators))
        return cls(workload, lists, given, _needs(given, sizes(accelerators).max(axis=0)))

    def held_by(self, accelerator: Accelerator) -> Candidates | None:
        """`features.all_candidates` of a member that its SRAMs hold; None: its knobs have other candidates."""
        own = candidates(ScheduleSpace(self.workload, accelerator))
        if not all(np.array_equal(one, other) for one, other in zip(own, self.lists, strict=True)):
            return None
        data = slice(len(_USES))
        places = np.flatnonzero((self.needs[:, data] <= sizes([accelerator])[0, data]).all(axis=1))
        return _on_member(self.given.take(places), self.needs[places], accelerator)


class _Cells(NamedTuple):
    """Schedules by how much they need of each memory, in steps between which no member's size lies.

    ``held``: int64 (k,), places of those that some member holds; ``cell``: int64 (k,), of each its place in a grid of
    ``shape``; ``member``: of each memory int64 (m,), where each member is in that grid, which holds all before it.
    """

    held: NDArray[np.int64]
    cell: NDArray[np.int64]
    shape: tuple[int, ...]
    member: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Family:
    """All canonical schedules of a workload that the largest memories of a family hold.

    Attributes:
        workload: what is computed.
        nest: of a member, with the largest of each of the memories.
        given: the schedules, with closed forms on that nest.
        needs: int64 (n, 4), how much of each of `MEMORIES` each keeps, elements.
    """

    workload: Workload
    nest: Nest
    given: Candidates
    needs: NDArray[np.int64]
    _cycles: dict[str, NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def all_of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Iterator[tuple[list[int], Family]]:
        """The families among accelerators of one block and batch: positions of the members, and their schedules.

        The schedules are listed once for all whose knobs have the same candidates; closed forms are each family's own.

        Raises:
            NoSchedule: a workload that VTA cannot address.
            ValueError: accelerators of several blocks or batches.
        """
        if len({(accelerator.log_batch, accelerator.log_block) for accelerator in accelerators}) != 1:
            raise ValueError("families of one block and batch are found together")
        channels = channel_blocks(workload.loops, accelerators[0].block).outputs
        # Tiles of more channels than ACC holds are no candidates, and what is left is thinned otherwise.
        few = (accelerator.acc_depth if accelerator.acc_depth < channels else 0 for accelerator in accelerators)
        for places in equal_places(few):
            yield from cls._by_lists(workload, accelerators, places)

    @classmethod
    def _by_lists(
        cls, workload: Workload, accelerators: Sequence[Accelerator], places: list[int]
    ) -> Iterator[tuple[list[int], Family]]:
        """`all_of` those at some places, whose knobs differ in one more way to fold at most."""
        bare: list[int] = []
        for members, family, needs, folded in cls._listed_families(workload, [accelerators[at] for at in places]):
            own = [places[member] for member in members]
            lacking = set() if folded else family._folding_otherwise([accelerators[at] for at in own], needs)
            bare += [at for number, at in enumerate(own) if number in lacking]
            kept = [at for number, at in enumerate(own) if number not in lacking]
            if kept:
                yield kept, family
        if bare:
            yield from cls._by_lists(workload, accelerators, bare)

    @classmethod
    def _listed_families(
        cls, workload: Workload, accelerators: Sequence[Accelerator]
    ) -> Iterator[tuple[list[int], Family, NDArray[np.int64], bool]]:
        """Families by the knobs of the widest: positions of the members, and their schedules; what all schedules need
        that the largest memories hold, legal or not; and whether taps may be folded in the one more way."""
        limits = sizes(accelerators).max(axis=0)
        for members, nest, given, (lists, radix) in _listed(workload, accelerators):
            needs = _needs(given, limits)
            yield members, cls._sound(workload, nest, given, needs), needs, FOLD_TAPS in lists[_FOLD, : radix[_FOLD]]

    @classmethod
    def of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Family:
        """The schedules for accelerators of one `family_key`, by the knobs of the widest of them.

        Raises:
            NoSchedule: a workload that VTA cannot address.
            ValueError: accelerators of several families.
        """
        return _only(cls._listed_families(workload, accelerators))[1]

    @classmethod
    def _sound(cls, workload: Workload, nest: Nest, given: Candidates, needs: NDArray[np.int64]) -> Family:
        """Without what the closed form knows to be illegal: hazards, and programs that are too long."""
        found = totals_of(given.summary)
        sound = no_hazard(nest, given.summary)
        sound &= (found["uops"] <= int(nest["uop_limit"])) & (found["instructions"] <= MAX_INSNS)
        places = np.flatnonzero(sound)
        return cls(workload, nest, given.take(places), needs[places])

    def objective(self, name: str) -> NDArray[np.float64]:
        """Cycles of all schedules by one of `OBJECTIVES`, float64 (n,); computed once."""
        if name not in self._cycles:
            found = {"guess": guess_of, "cautious": cautious_of}.get(name)
            self._cycles[name] = column(self.given.summary, name) if found is None else found(self.given.summary)
        return self._cycles[name]

    def _cells(self, accelerators: Sequence[Accelerator]) -> _Cells:
        """The schedules that some member holds, by how much they need of each memory."""
        wanted = sizes(accelerators)
        levels = [np.unique(wanted[:, memory]) for memory in range(len(MEMORIES))]
        needed = [np.searchsorted(level, need) for level, need in zip(levels, self.needs.T, strict=True)]
        held = np.flatnonzero(np.all([at < len(level) for at, level in zip(needed, levels, strict=True)], axis=0))
        shape = tuple(len(level) for level in levels)
        member = tuple(np.searchsorted(level, want) for level, want in zip(levels, wanted.T, strict=True))
        return _Cells(held, np.ravel_multi_index([at[held] for at in needed], shape), shape, member)

    def holding(self, accelerators: Sequence[Accelerator]) -> NDArray[np.bool_]:
        """Whether each member holds a schedule, bool (m,)."""
        cells = self._cells(accelerators)
        there = np.bincount(cells.cell, minlength=int(np.prod(cells.shape))).reshape(cells.shape) > 0
        for memory in range(len(MEMORIES)):
            np.logical_or.accumulate(there, axis=memory, out=there)
        found: NDArray[np.bool_] = there[cells.member]
        return found

    def _folding_otherwise(self, accelerators: Sequence[Accelerator], needs: NDArray[np.int64]) -> set[int]:
        """Positions of the members that hold nothing legal, and may fold taps in one more way.

        ``needs``: of all schedules that the largest memories hold, legal or not.
        """
        loops = self.workload.loops
        lacking = np.flatnonzero(~self.holding(accelerators))
        if loops.height.kernel * loops.width.kernel == 1 or loops.pool or not len(lacking):
            return set()
        data, found = sizes(accelerators)[:, : len(_USES)], set[int]()
        for row in np.unique(data[lacking], axis=0):
            same = np.flatnonzero((data == row).all(axis=1))
            # What holds some with more micro-ops has the same knobs, and what none fits into has no schedule.
            if np.isin(same, lacking).all() and (needs[:, : len(_USES)] <= row).all(axis=1).any():
                if FOLD_TAPS in ScheduleSpace(self.workload, accelerators[int(same[0])]).knobs[_FOLD].values:
                    found.update(same.tolist())
        return found

    def best(self, accelerators: Sequence[Accelerator]) -> NDArray[np.int64]:
        """Places of the best schedules of members by each of `OBJECTIVES`, int64 (m, 3); -1 where none is held."""
        cells = self._cells(accelerators)
        held, cell, shape = cells.held, cells.cell, cells.shape
        columns = []
        for name in OBJECTIVES:
            cycles = self.objective(name)[held]
            floor = np.full(int(np.prod(shape)), np.inf)
            np.minimum.at(floor, cell, cycles)
            # Only the best of a cell can be the best of a member.
            first = np.flatnonzero(cycles == floor[cell])
            first = first[np.argsort(cycles[first], kind="stable")]
            least = np.full(shape, len(first), dtype=np.int64)
            np.minimum.at(least.reshape(-1), cell[first], np.arange(len(first)))
            for memory in range(len(MEMORIES)):
                np.minimum.accumulate(least, axis=memory, out=least)
            columns.append(np.append(held[first], -1)[least[cells.member]])
        return np.stack(columns, axis=1)

    def held_by(self, accelerator: Accelerator) -> NDArray[np.int64]:
        """Places of the schedules that a member's memories hold, int64 (k,)."""
        return np.flatnonzero((self.needs <= sizes([accelerator])[0]).all(axis=1))

    def at(self, accelerator: Accelerator, places: NDArray[np.int64]) -> Candidates:
        """Schedules at some places (k,) as candidates of a member."""
        return _on_member(self.given.take(places), self.needs[places], accelerator)

    def closed(self, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Closed forms of the best schedules of members by each of `OBJECTIVES`, float64 (m, 3, len(SUMMARY)).

        NaN where a member holds no schedule.
        """
        if not len(self.given):
            return np.full((len(accelerators), len(OBJECTIVES), len(SUMMARY)), np.nan)
        places = self.best(accelerators)
        found = self.given.summary[places]
        uses = self.needs[places][:, :, : len(_USES)] / sizes(accelerators)[:, None, : len(_USES)]
        found[:, :, _USE_COLUMNS] = uses
        found[(places < 0).any(axis=1)] = np.nan
        return found

    def floors(self, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Cycles that no schedule which a member holds goes below, float64 (m,); infinite: it holds none."""
        bounds = self.closed(accelerators)[:, OBJECTIVES.index("bound"), SUMMARY.index("bound")]
        return np.where(np.isnan(bounds), np.inf, bounds)


def floors(workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
    """Cycles that no schedule of a workload's own space on each accelerator goes below, proven, float64 (m,).

    The least proven bound of the schedules that a member holds; infinite where it holds none that is legal.

    Raises:
        NoSchedule: a workload that VTA cannot address.
    """
    found = np.full(len(accelerators), np.inf)
    for places in equal_places((accelerator.log_batch, accelerator.log_block) for accelerator in accelerators):
        for members, family in Family.all_of(workload, [accelerators[place] for place in places]):
            own = [places[member] for member in members]
            found[own] = family.floors([accelerators[place] for place in own])
    return found
