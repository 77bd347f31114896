"""What the modules of a schedule space offer; see `registry.SpaceKind` for which module is which."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

    from oneshot_ml2.spaces.base import BatchResult, Candidates, Effort, FeatureSet, Knob, Schedule
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.faults import Faults
    from oneshot_ml2.vta.program import Insns, Program
    from oneshot_ml2.workload.base import Workload


class Backend(Protocol):
    """The schedules themselves; ``values`` is int64 (n, number of knobs), knob values in the order of ``KNOBS``."""

    SPACE_VERSION: int
    KNOBS: tuple[str, ...]

    def version_of(self, workload: Workload) -> int:
        """The version that last changed schedules of such a workload: what is of it or of a later one is of today."""
        ...

    def knobs(self, workload: Workload, accelerator: Accelerator) -> tuple[Knob, ...]:
        """Those of ``KNOBS`` with their candidates for a workload."""
        ...

    def short(self, schedule: Schedule) -> str:
        """What a schedule is, short enough for a column of a table."""
        ...

    def canonical(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values (n, knobs) that stand for each schedule: what lowers to one program has the same."""
        ...

    def table(self, space: ScheduleSpace) -> NDArray[np.int64]:
        """Indices of all canonical schedules, int64 (m,), ascending; `space.scan` is slow, but does for any space."""
        ...

    def validity(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`Reason` of each schedule, uint8 (n,); has to agree with :meth:`lower` exactly."""
        ...

    def estimate(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
        """A guess of the cycles of each schedule, float64 (n,); infinite where capacity rules it out."""
        ...

    def lower(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Program:
        """The program of one schedule, whose ``values`` are int64 (number of knobs,); raises InvalidSchedule."""
        ...

    def programs(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Iterator[Insns]:
        """The instructions (m,) of valid schedules, each a view that the next one overwrites."""
        ...

    def measure_batch(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> BatchResult:
        """Lower and time schedules on the simulator; invalid ones carry their reason."""
        ...


class SpaceEncoder(Protocol):
    """What turns schedules of one space into numbers."""

    @classmethod
    def of(cls, space: ScheduleSpace, version: int = ...) -> Self: ...

    def candidates(self, indices: NDArray[np.int64], values: NDArray[np.int64]) -> Candidates:
        """Indices (n,) and their canonical knob values (n, knobs) with their closed forms."""
        ...

    def candidates_at(self, indices: NDArray[np.int64]) -> Candidates:
        """The schedules at some indices (n,), aliases by the values of those that stand for them; on this thread."""
        ...

    def encode(self, given: Candidates, out: NDArray[np.float32]) -> None:
        """Schedule features of candidates into the first columns of float32 (n, at least so many), on this thread."""
        ...


class Encoding(Protocol):
    """What the network sees of a task and of its schedules.

    ``FEATURE_VERSION``: of weights that know the RTL alone, whose features are ``TASK_FEATURES``,
    ``SCHEDULE_FEATURES`` and both, ``FEATURES``; ``HLS_FEATURE_VERSION``: of weights that know the HLS design, which
    see more. ``FEATURE_SETS``: by version. Columns of summaries that count or measure something, no verdicts, are
    ``COUNTED``.
    """

    FEATURE_VERSION: int
    HLS_FEATURE_VERSION: int
    FEATURE_SETS: Mapping[int, FeatureSet]
    TASK_FEATURES: tuple[str, ...]
    SCHEDULE_FEATURES: tuple[str, ...]
    FEATURES: tuple[str, ...]
    COUNTED: NDArray[np.int64]
    Encoder: type[SpaceEncoder]

    def task_features(self, space: ScheduleSpace, version: int = ...) -> NDArray[np.float32]: ...

    def accelerator_and_workload(self, row: NDArray[np.float32], version: int = ...) -> dict[str, float]: ...

    def all_candidates(self, space: ScheduleSpace, fitting: bool = False) -> Candidates: ...

    def candidates_at(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> Candidates: ...

    def without_hazards(self, space: ScheduleSpace, given: Candidates) -> Candidates:
        """The candidates that do not update an accumulator again too soon, as far as closed forms know."""
        ...

    def with_waits(self, space: ScheduleSpace, given: Candidates) -> Candidates:
        """The same candidates, with what closed forms know of waiting, so that it is told only once."""
        ...

    def waiting(self, space: ScheduleSpace, given: Candidates) -> NDArray[np.float64]:
        """A guess of the cycles of candidates of a space, float64 (n,), with all that closed forms know of waiting:
        for accelerators of which no network knows much."""
        ...


class MeasureFaulty(Protocol):
    """What `Backend.measure_batch` does, on a board with faults."""

    def __call__(
        self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64], faults: Faults
    ) -> BatchResult: ...


class ScheduleFamily(Protocol):
    """All schedules of a workload for accelerators that differ in their SRAMs alone; see `full.families.Family`."""

    def objective(self, name: str) -> NDArray[np.float64]:
        """Cycles of all schedules by one of ``OBJECTIVES``, float64 (n,)."""
        ...

    @classmethod
    def of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Self: ...

    @classmethod
    def all_of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Iterator[tuple[list[int], Self]]: ...

    def best(self, accelerators: Sequence[Accelerator]) -> NDArray[np.int64]:
        """Places of the best schedules of members by each of ``OBJECTIVES``, int64 (m, objectives); -1: none."""
        ...

    def held_by(self, accelerator: Accelerator) -> NDArray[np.int64]:
        """Places of the schedules that a member's memories hold, int64 (k,)."""
        ...

    def at(self, accelerator: Accelerator, places: NDArray[np.int64]) -> Candidates:
        """Schedules at some places (k,) as candidates of a member."""
        ...

    def closed(self, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Closed forms of the best schedules of members by each of ``OBJECTIVES``, float64 (m, objectives, columns).

        NaN where a member holds no schedule.
        """
        ...


class Listing(Protocol):
    """All schedules of a workload, legal or not, for accelerators of one family; see `full.families.Listing`."""

    @classmethod
    def of(cls, workload: Workload, accelerators: Sequence[Accelerator]) -> Self: ...

    def held_by(self, accelerator: Accelerator) -> Candidates | None:
        """`Encoding.all_candidates` of a member that its SRAMs hold; None: its knobs have other candidates."""
        ...


class Families(Protocol):
    """What is computed once for accelerators that differ in their SRAMs alone.

    ``OBJECTIVES``: closed forms that the best schedule is looked for by, the likeliest first; ``SUMMARY``: columns of
    `Candidates.summary`.
    """

    OBJECTIVES: tuple[str, ...]
    SUMMARY: tuple[str, ...]
    Family: type[ScheduleFamily]
    Listing: type[Listing]

    def family_key(self, accelerator: Accelerator) -> Hashable:
        """What accelerators of a family have in common."""
        ...

    def nests(self, workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.record]:
        """The loop nests of a workload on the accelerators of one family, records (m,) of `vta.nest.DTYPE`."""
        ...

    def floors(self, workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Cycles that no schedule of a workload on each accelerator goes below, proven, float64 (m,)."""
        ...


class TaskEncoding(Protocol):
    """What the task network sees of a layer on an accelerator.

    ``VERSION``: of the features, ``FEATURES`` their names.
    """

    VERSION: int
    FEATURES: tuple[str, ...]

    def encode(self, nests: NDArray[np.record], closed: NDArray[np.float64]) -> NDArray[np.float32]:
        """Features of pairs, float32 (n, len(FEATURES)), by their loop nests and by `ScheduleFamily.closed`."""
        ...

    def reference(self, closed: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cycles that T* is told beside, float64 (n,)."""
        ...


class Boards(Protocol):
    """What boards that are not as described do to schedules.

    Attributes:
        TRAFFIC: what a schedule asks of memories, which a board may limit: names of the columns of :meth:`traffic`.
    """

    TRAFFIC: tuple[str, ...]

    def traffic(self, space: ScheduleSpace, given: Candidates) -> NDArray[np.float64]:
        """`TRAFFIC` of candidates, float64 (n, len(TRAFFIC))."""
        ...

    def effort(self, space: ScheduleSpace, given: Candidates, traffic: NDArray[np.float64]) -> Effort:
        """What candidates with their :meth:`traffic` ask of the accelerator."""
        ...

    @property
    def measure_faulty(self) -> MeasureFaulty | None:
        """Many schedules at once on a board with faults; None: the space has nothing but programs one by one."""
        ...
