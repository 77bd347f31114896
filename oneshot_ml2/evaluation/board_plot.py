"""Plots of what the HLS design's model predicts over what boards measured: a panel a layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Layers of fewer configurations share a panel of their board.
_OWN_PANEL = 8
_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """``predicted``, ``measured``: float64 (n,), seconds of the configurations of a layer, or of several."""

    title: str
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]


def panels_of(layers: Sequence[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]]) -> list[Panel]:
    """Panels of (board, layer, predicted (n,), measured (n,)), those of a board together; without any pair none."""
    found = []
    for board in dict.fromkeys(row[0] for row in layers):
        own = [row for row in layers if row[0] == board and len(row[3])]
        found += [Panel(f"{board}, {row[1]}", row[2], row[3]) for row in own if len(row[3]) >= _OWN_PANEL]
        rest = [row for row in own if len(row[3]) < _OWN_PANEL]
        if rest:
            predicted, measured = (np.concatenate([row[k] for row in rest]) for k in (2, 3))
            found.append(Panel(f"{board}, {len(rest)} layers of a few", predicted, measured))
    return found


def draw(panels: Sequence[Panel]) -> bytes:
    """A picture (PNG) of panels, in milliseconds; axes are logarithmic where they span more than ten times.

    On the line both are equal.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(1, -(-len(panels) // _COLUMNS))
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(3.6 * _COLUMNS, 3.4 * rows), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes.flat, panels):
        predicted, measured = panel.predicted * 1e3, panel.measured * 1e3
        ends = [min(predicted.min(), measured.min()) / 1.1, max(predicted.max(), measured.max()) * 1.1]
        scale = "log" if ends[1] > 10 * ends[0] else "linear"
        error = np.median(np.abs(predicted / measured - 1))
        axis.plot(ends, ends, color="grey", linewidth=1)
        axis.scatter(measured, predicted, s=9)
        axis.set(xlabel="measured, ms", ylabel="predicted, ms", xscale=scale, yscale=scale, xlim=ends, ylim=ends)
        axis.set_title(f"{panel.title}: {len(measured)}, median error {error:.1%}", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return picture.getvalue()
