"""Plain-text tables and the short forms that they show."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oneshot_ml2.schedule import Schedule
    from oneshot_ml2.workload import Workload

# `vta.plan`'s dataflows in order: the outer loop, then what stays resident while it is reused.
DATAFLOWS = ("co", "co/wgt", "co/wgt+inp", "sp/inp", "sp/inp+wgt", "sp/wgt")
_BUFFERS = ("inp_buffers", "wgt_buffers", "acc_buffers")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """Lines of right-aligned columns, two blanks apart; the columns named in ``left`` are left-aligned.

    Raises:
        ValueError: a row with more or fewer cells than the header.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"rows of {sorted({len(line) for line in lines})} cells under {len(header)} headings")
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width) for name, cell, width in zip(header, line, widths)
        ).rstrip()
        for line in lines
    )


def short_workload(workload: Workload) -> str:
    """E.g. ``64x56x56 > 128x28x28 3x3/2`` or ``512 > 1000``; a batch other than 1 goes in front."""
    op, text = str(workload).replace(" -> ", " > ").split(" ", 1)
    batch, _, rest = text.partition("x")
    text = rest if batch == "1" else f"{batch} x {rest}"
    return text if op == "conv2d" else f"{text} {op}"


def short_schedule(schedule: Schedule) -> str:
    """A `full` schedule's tile (co x h x w x ci), dataflow, and buffers of INP, WGT and ACC: ``8x28x1x3 co/wgt 2/2/1``.

    Schedules of other spaces are given in full.
    """
    knobs = dict(schedule.knobs)
    if "dataflow" not in knobs:
        return str(schedule)
    tile = "x".join(str(knobs[f"tile_{axis}"]) for axis in ("co", "h", "w", "ci"))
    return f"{tile} {DATAFLOWS[knobs['dataflow']]} {'/'.join(str(knobs[name]) for name in _BUFFERS)}"


def on_host(layer: str, reason: str) -> str:
    """The warning that a layer has no schedule."""
    return f"{layer}: on the host, {reason}"


def percent(share: float) -> str:
    """A share as ``97.3%``."""
    return f"{share:.1%}"


def finite(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: those become None."""
    return float(value) if math.isfinite(value) else None
