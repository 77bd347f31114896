"""How a schedule is shown in a column of a table."""

from __future__ import annotations

from oneshot_ml2.spaces.base import Schedule

# `plan`'s dataflows in order: the outer loop, then what stays resident while it is reused.
DATAFLOWS = ("co", "co/wgt", "co/wgt+inp", "sp/inp", "sp/inp+wgt", "sp/wgt")
_BUFFERS = ("inp_buffers", "wgt_buffers", "acc_buffers")


def short(schedule: Schedule) -> str:
    """Its tile (co x h x w x ci), dataflow, and buffers of INP, WGT and ACC: ``8x28x1x3 co/wgt 2/2/1``."""
    knobs = dict(schedule.knobs)
    if "dataflow" not in knobs:
        return str(schedule)
    tile = "x".join(str(knobs[f"tile_{axis}"]) for axis in ("co", "h", "w", "ci"))
    return f"{tile} {DATAFLOWS[knobs['dataflow']]} {'/'.join(str(knobs[name]) for name in _BUFFERS)}"
