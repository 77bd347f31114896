"""The kinds of schedule spaces that there are: a record each, registered here, and nowhere else.

The modules of a space are imported when they are first asked for, since they bring numba with them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, cast

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.vta.accelerator import DESIGNS

if TYPE_CHECKING:
    from collections.abc import Callable

    from oneshot_ml2.spaces.protocols import Backend, Boards, Encoding, Families, TaskEncoding
    from oneshot_ml2.vta.board import Board
    from oneshot_ml2.vta.program import Insns

# The space that picks are of, and files that name none.
DEFAULT_KIND = "full"
# TVM's own space, which measurements of others are of.
TVM_KIND = "autotvm"


@dataclass(frozen=True)
class SpaceKind:
    """A kind of schedule space, and the modules that bring what it can.

    Attributes:
        name: what schedules, corpora, logs and weights call it.
        about: what it is, in a line.
        schedules_module: of a `protocols.Backend`.
        features_module: of a `protocols.Encoding`; None: no network knows the space.
        weights: by design (`accelerator.DESIGNS`) the name of the shipped weights that know it; none: there are none.
        boards_module: of `protocols.Boards`; None: no calibration to a board.
        families_module, tasks_module: of `protocols.Families` and `protocols.TaskEncoding`; None: no network tells T*
            of a task alone, so no co-design.
        proven: whether `Candidates.bound` is proven, so that T* can be found.
    """

    name: str
    about: str
    schedules_module: str
    features_module: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    boards_module: str | None = None
    families_module: str | None = None
    tasks_module: str | None = None
    proven: bool = False

    @cached_property
    def schedules(self) -> Backend:
        """The module of the schedules."""
        return cast("Backend", importlib.import_module(self.schedules_module))

    @cached_property
    def features(self) -> Encoding:
        """The module of the features.

        Raises:
            OneShotError: there is none.
        """
        if self.features_module is None:
            known = ", ".join(kind for kind, record in _KINDS.items() if record.features_module)
            raise OneShotError(f"no features of schedule space {self.name!r}; there are those of: {known}")
        return cast("Encoding", importlib.import_module(self.features_module))

    @cached_property
    def boards(self) -> Boards | None:
        """The module of what boards do to its schedules, if there is one."""
        return None if self.boards_module is None else cast("Boards", importlib.import_module(self.boards_module))

    @cached_property
    def families(self) -> Families:
        """The module of what accelerators of different SRAMs share.

        Raises:
            OneShotError: there is none.
        """
        return cast("Families", self._of_tasks(self.families_module))

    @cached_property
    def tasks(self) -> TaskEncoding:
        """The module of what the task network sees.

        Raises:
            OneShotError: there is none.
        """
        return cast("TaskEncoding", self._of_tasks(self.tasks_module))

    def _of_tasks(self, module: str | None) -> object:
        if module is None:
            known = ", ".join(kind for kind, record in _KINDS.items() if record.tasks_module)
            raise OneShotError(f"no task network knows the schedule space {self.name!r}; one knows: {known}")
        return importlib.import_module(module)

    def shipped(self, design: str = DESIGNS[0]) -> str:
        """The name of the shipped weights that know it, and a design of accelerators.

        Raises:
            OneShotError: there are none.
        """
        if design not in self.weights:
            known = ", ".join(kind for kind, record in _KINDS.items() if design in record.weights)
            raise OneShotError(f"no weights know the schedule space {self.name!r}; there are some of: {known}")
        return self.weights[design]


@cache
def board_rule() -> Callable[[Board, Insns], bool]:
    """Whether a board can run a program's instructions: `needs.allows`, whose module brings numba with it, too."""
    return cast("Callable[[Board, Insns], bool]", importlib.import_module("oneshot_ml2.vta.needs").allows)


_KINDS: dict[str, SpaceKind] = {}


def register(record: SpaceKind) -> None:
    """Make a kind of space known in this process; one of the same name is replaced."""
    _KINDS[record.name] = record


def kinds() -> tuple[str, ...]:
    """The kinds of spaces that there are, in the order in which they were registered."""
    return tuple(_KINDS)


def space_kind(name: str) -> SpaceKind:
    """The record of a kind of space.

    Raises:
        OneShotError: no such kind (names those there are).
    """
    if name not in _KINDS:
        raise OneShotError(unknown("schedule space", name, _KINDS))
    return _KINDS[name]


def backend(name: str) -> Backend:
    """The module of the schedules of a kind of space.

    Raises:
        OneShotError: no such kind.
    """
    return space_kind(name).schedules


def listing() -> str:
    """The kinds of spaces with what each is, for ``--help``."""
    listed = "; ".join(f"{record.name}: {record.about}" for record in _KINDS.values())
    return f"schedule space: {listed} (default {DEFAULT_KIND})"


register(
    SpaceKind(
        DEFAULT_KIND,
        "what VTA's instruction set allows",
        "oneshot_ml2.spaces.full.space",
        features_module="oneshot_ml2.spaces.full.features",
        weights={"chisel": "default", "hls": "hls"},
        boards_module="oneshot_ml2.spaces.full.boards",
        families_module="oneshot_ml2.spaces.full.families",
        tasks_module="oneshot_ml2.spaces.full.task_features",
        proven=True,
    )
)
register(
    SpaceKind(
        TVM_KIND,
        "TVM's own template of convolutions",
        "oneshot_ml2.spaces.autotvm.space",
        features_module="oneshot_ml2.spaces.autotvm.features",
        weights={"chisel": "autotvm", "hls": "autotvm-hls"},
        boards_module="oneshot_ml2.spaces.autotvm.boards",
    )
)
