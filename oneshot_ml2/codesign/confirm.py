"""Real picks on the accelerators that a sweep puts first, and what those take on the simulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_ml2.codesign.models import Model
from oneshot_ml2.codesign.sweep import images_of
from oneshot_ml2.common.reading import whole_number
from oneshot_ml2.models.costs import cost_of
from oneshot_ml2.network import picking
from oneshot_ml2.network.picking import Pick
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.breakdown import PARTS
from oneshot_ml2.vta.reasons import InvalidSchedule


@dataclass(frozen=True)
class Confirmed:
    """What real picks of models take on an accelerator.

    Attributes:
        accelerator: its JSON, by which it is known.
        cycles: of each model, by name; as the network predicts its picks, or ``simulated``.
        parts: where the cycles go, of each model: `breakdown.PARTS` -> cycles; only of what is simulated.
    """

    accelerator: str
    cycles: Mapping[str, int]
    simulated: bool
    parts: Mapping[str, Mapping[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """An entry of a log."""
        return {"confirmed": self.accelerator, "cycles": self.cycles, "simulated": self.simulated, "parts": self.parts}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Confirmed:
        """What `to_dict` gives; raises KeyError, TypeError or ValueError for what is none."""
        cycles = {str(name): whole_number(value, "cycles", 1) for name, value in entry["cycles"].items()}
        parts = {
            str(name): {part: whole_number(own[part], part, 0) for part in PARTS}
            for name, own in entry["parts"].items()
        }
        if not isinstance(entry["confirmed"], str) or not isinstance(entry["simulated"], bool):
            raise ValueError("not confirmed")
        return cls(entry["confirmed"], cycles, entry["simulated"], parts)


def confirm(models: Sequence[Model], accelerator: Accelerator, throughput: bool, verify: bool) -> Confirmed | None:
    """Pick for every layer of the models on an accelerator; with ``verify`` simulate the picks.

    None: a layer has no legal schedule there.
    """
    own = [model.workloads(accelerator, images_of(accelerator, throughput)) for model in models]
    picks = picking.pick_all(list(dict.fromkeys(workload for counts in own for workload in counts)), accelerator)
    if any(isinstance(pick, InvalidSchedule) for pick in picks.values()):
        return None
    made = {workload: pick for workload, pick in picks.items() if isinstance(pick, Pick)}
    costs = {workload: cost_of(pick) for workload, pick in made.items()} if verify else {}
    cycles, parts = {}, {}
    for model, counts in zip(models, own, strict=True):
        if verify:
            found: Counter[str] = Counter()
            for workload, count in counts.items():
                found.update({part: count * value for part, value in costs[workload].parts.items()})
            parts[model.name] = {part: found[part] for part in PARTS}
        took = (
            count * (costs[workload].cycles if verify else made[workload].predicted_cycles)
            for workload, count in counts.items()
        )
        cycles[model.name] = max(1, round(sum(took)))
    return Confirmed(accelerator.to_json(), cycles, verify, parts)
