"""What a model's runs took on a device, beside what was predicted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oneshot_ml2.models.launcher import seconds_on
from oneshot_ml2.vta.spread import spread, spread_words

if TYPE_CHECKING:
    from oneshot_ml2.models.executable import Executable


@dataclass(frozen=True)
class Submission:
    """Milliseconds of a submission: by the timing model, and on the device, None if it has not run."""

    predicted_ms: float
    measured_ms: float | None


@dataclass(frozen=True)
class Measured:
    """``device``: its name; ``runs``: of the whole model; ``host_ms``: what a run takes beside the submissions, with
    packing and the way to the device; all are medians; ``spread``: of what is predicted, `vta.spread`."""

    device: str
    runs: int
    submissions: tuple[Submission, ...]
    host_ms: float
    spread: float | None = None

    @property
    def vta_ms(self) -> tuple[float, float]:
        """Of all submissions: predicted, and measured."""
        parts = self.submissions
        return sum(one.predicted_ms for one in parts), sum(one.measured_ms or 0.0 for one in parts)

    def line(self) -> str:
        """For people."""
        predicted, found = self.vta_ms
        around = spread_words(self.spread)
        return f"VTA {found:,.3f} ms (predicted {predicted:,.3f}{around}), host {self.host_ms:,.3f} ms"


def measured(model: Executable, report: Mapping[str, Any]) -> Measured | None:
    """What the runs of a model took so far; None: no device but the simulator ran them, or there were none.

    Args:
        report: the model's, as ``report.json`` has it.
    """
    seconds = None if model.device is None or not model.walls else seconds_on(model.identity)
    if seconds is None or model.device is None:
        return None
    clock = model.accelerator.clock_mhz * 1e3
    parts = tuple(
        Submission(int(entry["cycles"]) / clock, None if found is None else found * 1e3)
        for entry, found in zip(report["submissions"], seconds, strict=True)
    )
    on_vta = sum(part.measured_ms or 0.0 for part in parts)
    host = max(statistics.median(model.walls) * 1e3 - on_vta, 0.0)
    return Measured(model.device.name, len(model.walls), parts, host, spread(model.accelerator))
