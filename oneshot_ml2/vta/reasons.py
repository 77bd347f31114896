"""Why a schedule, or its program, is invalid."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import OneShotError

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload

REASONS_VERSION = 1


class Reason(enum.IntEnum):
    """Why a schedule is invalid; ``VALID`` is 0. The numbers are stored in corpora: append only."""

    VALID = 0
    PAD_INNERMOST = 1
    DMA_PATTERN = 2
    THREAD_SPLIT = 3
    ACC_HAZARD = 4
    UOP_SIGNATURE = 5
    SRAM_OVERFLOW = 6
    UOP_OVERFLOW = 7
    FIELD_OVERFLOW = 8
    INSTRUCTION_OVERFLOW = 9
    TOKEN_OVERFLOW = 10
    DEADLOCK = 11
    ALU_HAZARD = 12
    TIMEOUT = 13
    WRONG_RESULT = 14
    DEVICE_ERROR = 15

    @property
    def label(self) -> str:
        """The name that files and tables carry, e.g. ``sram_overflow``."""
        return self.name.lower()


# Failures of the device rather than of the program: worth another try.
TRANSIENT = (Reason.TIMEOUT, Reason.DEVICE_ERROR)


class InvalidSchedule(OneShotError, ValueError):
    """A schedule that does not lower; ``reason`` says why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"invalid schedule: {reason.label}" + (f" ({detail})" if detail else ""))
        self.reason = reason


_SPLIT = "a split into layers of fewer images, pixels or channels"
# What makes schedules legal that are not for a reason.
_HELP = {
    Reason.DMA_PATTERN: "fewer pads",
    Reason.ACC_HAZARD: "more output channels or pixels",
    Reason.SRAM_OVERFLOW: "larger SRAMs or a smaller kernel",
    Reason.UOP_OVERFLOW: "a smaller kernel",
    Reason.FIELD_OVERFLOW: "fewer pixels or smaller strides",
    Reason.INSTRUCTION_OVERFLOW: _SPLIT,
    Reason.TOKEN_OVERFLOW: _SPLIT,
}


class NoSchedule(InvalidSchedule):
    """No schedule of a workload on an accelerator is legal; ``reason`` says why most of them are not."""

    def __init__(self, workload: Workload, accelerator: Accelerator, reason: Reason, why: str) -> None:
        OneShotError.__init__(self, f"no legal schedule for {workload} on {accelerator.name}: {why}")
        self.reason = reason

    @classmethod
    def counted(cls, workload: Workload, accelerator: Accelerator, counts: Mapping[Reason, int]) -> NoSchedule:
        """The error that tells of how many schedules (at least one) each reason is."""
        found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count:,} {reason.label}" for reason, count in found)
        helps = list(dict.fromkeys(_HELP[reason] for reason, _ in found if reason in _HELP))[:2]
        text = f"of {sum(counts.values()):,} schedules {reasons}"
        if helps:
            text += f"; what helps: {', or '.join(helps)}"
        board = accelerator.board
        if board is not None and board.restricts:
            text += f"; wrong_result: its board cannot do {board.about} (docs/doctor.md)"
        return cls(workload, accelerator, found[0][0], text)
