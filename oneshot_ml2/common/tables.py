"""Plain-text tables, and numbers as they show them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


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


def on_host(layer: str, reason: str) -> str:
    """The warning that a layer has no schedule."""
    return f"{layer}: on the host, {reason}"


def percent(share: float) -> str:
    """A share as ``97.3%``."""
    return f"{share:.1%}"


def finite(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: those become None."""
    return float(value) if math.isfinite(value) else None
