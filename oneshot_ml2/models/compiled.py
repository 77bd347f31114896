"""What compiling a model gives: its executable, its figures and its report."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import tables
from oneshot_ml2.models import page as html_page
from oneshot_ml2.models import partition
from oneshot_ml2.models.executable import Executable, save, writing
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.layout import Dram
from oneshot_ml2.models.quantize.quantize import Quantized
from oneshot_ml2.spaces import space
from oneshot_ml2.spaces.registry import backend as schedule_backend
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload import base

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick

# Of int8: what rounding makes of a last bit, and a sum on the host of that.
_STEPS = 2


@dataclass(frozen=True)
class Checked:
    """What a run of the compiled model was held against: the integer reference of the same graph.

    ``layers``: layer -> outputs of its program alone that differ, its operands being the reference's; ``submissions``:
    the same of each submission's joined programs; ``outputs``: elements of the whole model's outputs that differ;
    ``largest``: the largest such difference; ``allowed``: how large it may be, 0 unless the host computes real numbers
    whose last bits depend on its compiler.

    In that case a last bit can decide an int8 step, and what follows from it is no error of anyone; so every submission
    gives the reference's results to the host there. ``flips``: elements that the host hands to submissions and that
    differ all the same; ``steps``: by how many steps of int8 at most.
    """

    layers: Mapping[str, int]
    submissions: tuple[int, ...]
    outputs: int
    largest: float
    allowed: float
    flips: int = 0
    steps: int = 0

    @property
    def ok(self) -> bool:
        """All layers and submissions are exact, and so is the model, as far as it consists of integers."""
        exact = not any((*self.layers.values(), *self.submissions))
        return exact and self.largest <= self.allowed and self.steps <= _STEPS


@dataclass(frozen=True)
class Cost:
    """What a layer's program takes.

    ``cycles``: by the timing model; ``bound``: the engine bound of the layer, in cycles; ``dram_bytes``: moved by LOADs
    and STOREs.
    """

    cycles: int
    bound: int
    dram_bytes: int


@dataclass(frozen=True)
class Submission:
    """What the layers of one submission take together.

    ``layers``: their names; ``inputs``, ``outputs``: tensors that are packed and unpacked for it; ``cycles``: by the
    timing model, from launch to end.
    """

    layers: tuple[str, ...]
    inputs: int
    outputs: int
    cycles: int


@dataclass(frozen=True)
class CompiledGraph:
    """A whole model, compiled.

    Attributes:
        quantized: its integer graph, which `ir.execute` computes, and the errors of quantization.
        executable: what runs.
        picks: output of a node -> the schedule of its layer; only of those on the VTA.
        costs: output of a node -> what its program takes alone.
        submissions: what is launched, in order.
        dram: the plan of the VTA's memory.
        seconds: wall time of each of ``STAGES``.
        peak_bytes: the most memory that the process had so far; 0 where the system does not say.
        checked: None if nothing was checked.
    """

    quantized: Quantized
    executable: Executable
    picks: Mapping[str, Pick]
    costs: Mapping[str, Cost]
    submissions: tuple[Submission, ...]
    dram: Dram
    seconds: Mapping[str, float]
    peak_bytes: int
    checked: Checked | None

    @property
    def accelerator(self) -> Accelerator:
        return self.executable.accelerator

    @property
    def graph(self) -> Graph:
        return self.quantized.graph

    @property
    def ok(self) -> bool:
        """What was checked is right."""
        return self.checked is None or self.checked.ok

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """As `Executable.run`."""
        return self.executable.run(inputs)

    def save(self, folder: str | Path) -> None:
        """Write the folder that ``oneshot-ml2 run`` and `executable.load` take, see `executable.writing`."""
        with writing(folder) as place:
            self.write(place)

    def write(self, folder: Path) -> None:
        """As `save`, within `executable.writing`."""
        save(self.executable, folder, self.schedules(), self.to_dict(), self.html())

    def html(self) -> str:
        """A self-contained page with the report and what each layer does over time."""
        nodes = (node for node in self.graph.nodes if node.output in self.picks)
        return html_page.page(self.to_dict(), {node.name: self.picks[node.output].program for node in nodes})

    def macs(self) -> tuple[int, int]:
        """Multiplications on the VTA, and on the host."""
        on = {True: 0, False: 0}
        for node in self.graph.nodes:
            on[node.output in self.picks] += partition.node_macs(self.graph, node)
        return on[True], on[False]

    def schedules(self) -> list[dict[str, Any]]:
        """Each layer's schedule and where it comes from, for ``schedules.json``."""
        return [
            {
                "layer": node.name,
                "workload": node.attrs["workload"].to_dict(),
                "space": pick.space.kind,
                "space_version": schedule_backend(pick.space.kind).SPACE_VERSION,
                "schedule": dict(pick.schedule.knobs),
                "source": pick.source,
                "predicted_cycles": tables.finite(pick.predicted_cycles),
            }
            for node in self.graph.nodes
            for pick in [self.picks.get(node.output)]
            if pick is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        on_vta, on_host = self.macs()
        errors = {error.name: error for error in self.quantized.errors}
        layers = []
        for node in self.graph.nodes:
            pick = self.picks.get(node.output)
            error = errors.get(node.name)
            entry: dict[str, Any] = {
                "layer": node.name,
                "operator": node.op.removeprefix("int_"),
                "where": "host" if pick is None else "vta",
                "shape": list(self.graph.values[node.output].shape),
                "macs": partition.node_macs(self.graph, node),
                "exponent": self.graph.values[node.output].exponent,
                "error": None if error is None else error.rms,
            }
            if pick is None:
                entry["reason"] = partition.host_reason(node)
            else:
                entry |= {
                    "workload": node.attrs["workload"].to_dict(),
                    "schedule": dict(pick.schedule.knobs),
                    "source": pick.source,
                    "predicted_cycles": tables.finite(pick.predicted_cycles),
                    **dataclasses.asdict(self.costs[node.output]),
                    "wrong_outputs": None if self.checked is None else self.checked.layers[node.name],
                }
            layers.append(entry)
        return {
            "model": self.executable.name,
            "accelerator": json.loads(self.accelerator.to_json()) | {"name": self.accelerator.name},
            "quantization": self.quantized.kind,
            "rounding": self.quantized.rounding,
            "changes": list(self.quantized.changes),
            "warnings": self.warnings(),
            "losses": [dataclasses.asdict(loss) for loss in self.quantized.losses],
            "ok": self.ok,
            "checked": None if self.checked is None else {
                "outputs": self.checked.outputs,
                "largest_difference": tables.finite(self.checked.largest),
                "allowed_difference": self.checked.allowed,
                "operands_that_differ": self.checked.flips,
                "steps": self.checked.steps,
            },
            "cycles": self.cycles,
            "layer_cycles": sum(cost.cycles for cost in self.costs.values()),
            "engine_bound": self.bound,
            "milliseconds": self.milliseconds,
            "macs_vta": on_vta,
            "macs_host": on_host,
            "host_shares": partition.host_shares(self.graph),
            "seconds": dict(self.seconds),
            "peak_bytes": self.peak_bytes,
            "dram": dataclasses.asdict(self.dram),
            "submissions": [
                dataclasses.asdict(submission) | {"wrong_outputs": wrong}
                for submission, wrong in zip(
                    self.submissions,
                    [None] * len(self.submissions) if self.checked is None else self.checked.submissions,
                )
            ],
            "layers": layers,
        }  # fmt: skip

    @property
    def cycles(self) -> int:
        """Simulated cycles of all submissions to the VTA."""
        return sum(submission.cycles for submission in self.submissions)

    @property
    def bound(self) -> int:
        """The sum of the layers' engine bounds."""
        return sum(cost.bound for cost in self.costs.values())

    @property
    def milliseconds(self) -> float:
        """Those cycles at the VTA's clock."""
        return self.cycles / (self.accelerator.clock_mhz * 1e3)

    def _unscheduled(self) -> list[str]:
        """A line for each layer whose multiplications are the host's for want of a schedule."""
        on_vta, on_host = self.macs()
        lines = []
        for node in self.graph.nodes:
            macs = partition.node_macs(self.graph, node)
            if macs and node.attrs.get("unscheduled"):
                line = tables.on_host(node.name, str(partition.host_reason(node)))
                lines.append(f"{line} ({macs / (on_vta + on_host):.1%} of the model's MACs)")
        return lines

    def warnings(self) -> list[str]:
        """What the missing schedules, the quantization and the picks warn of, one line each."""
        about: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            for warning in self.picks[node.output].warnings if node.output in self.picks else ():
                about.setdefault(warning, []).append(node.name)
        return [
            *self._unscheduled(),
            *self.quantized.warnings,
            *(
                f"{'all layers' if len(names) == len(self.picks) else ', '.join(names)}: {warning}"
                for warning, names in about.items()
            ),
        ]

    def report(self) -> str:
        """The table, a row an operator, and the totals."""
        texts = ("layer", "operator", "on", "shape", "schedule or reason", "source", "result")
        header = (*texts[:-1], "predicted", "cycles", "of bound", "KiB", "error", texts[-1])
        errors = {error.name: error.rms for error in self.quantized.errors}
        rows = []
        for node in self.graph.nodes:
            pick = self.picks.get(node.output)
            error = f"{errors[node.name]:.2%}" if node.name in errors else ""
            shape = "x".join(map(str, self.graph.values[node.output].shape[1:]))
            op = node.op.removeprefix("int_")
            if pick is None:
                rows.append((node.name, op, "host", shape, partition.host_reason(node) or "", *[""] * 5, error, ""))
                continue
            wrong = None if self.checked is None else self.checked.layers[node.name]
            result = "" if wrong is None else "exact" if wrong == 0 else f"WRONG: {wrong:,}"
            cost = self.costs[node.output]
            rows.append(
                (
                    node.name, op, "vta", base.short_workload(node.attrs["workload"]),
                    space.short_schedule(pick.schedule), pick.source, f"{pick.predicted_cycles:,.0f}",
                    f"{cost.cycles:,}", tables.percent(cost.bound / cost.cycles), f"{cost.dram_bytes / 1024:,.0f}",
                    error, result,
                )
            )  # fmt: skip
        on_vta, on_host = self.macs()
        chip, total = self.accelerator, max(on_vta + on_host, 1)
        sources = Counter(str(pick.source) for pick in self.picks.values())
        lines = [
            tables.table(header, rows, left=texts),
            "",
            f"{self.executable.name} on {chip.name}: {self.cycles:,} cycles on the VTA, {self.milliseconds:.2f} ms at "
            f"{chip.clock_mhz} MHz, {tables.percent(self.bound / max(self.cycles, 1))} of the engine bound; "
            f"{on_vta / total:.1%} of {total:,} MACs on the VTA.",
            f"{len(self.picks)} layers in {len(self.submissions)} submissions; one by one they take "
            f"{sum(cost.cycles for cost in self.costs.values()):,} cycles.",
            f"DRAM of the VTA: {self.dram.total / 2**20:,.2f} MiB, of which activations "
            f"{self.dram.activations / 2**20:,.2f} ({self.dram.separate / 2**20:,.2f} if no layers shared any).",
            "Picks: " + (", ".join(f"{count} {source}" for source, count in sources.most_common()) or "none") + ".",
            *(f"Warning: {line}." for line in self._unscheduled()),
            *(f"Changed: {change}." for change in self.quantized.changes),
            *(f"Warning: {warning}." for warning in self.warnings()),
        ]
        if self.checked is not None:
            right = sum(not wrong for wrong in self.checked.layers.values())
            end = "equals it"
            if self.checked.outputs:
                differs = "differs" if self.checked.largest <= self.checked.allowed else "DIFFERS"
                end = f"{differs} by at most {self.checked.largest:.2g} (allowed: {self.checked.allowed:.2g})"
            if self.checked.allowed:
                end += (
                    f", and {self.checked.flips} operands that the host computes do, by at most {self.checked.steps} "
                    "steps of int8, where it gets the reference's results from each submission"
                )
            lines.append(
                f"{right} of {len(self.checked.layers)} VTA layers equal the integer reference bit for bit, and so do "
                f"{self.checked.submissions.count(0)} of {len(self.checked.submissions)} submissions; the whole "
                f"model's output {end}."
            )
        times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        lines += [
            f"Wall time: {times}; peak memory {self.peak_bytes / 2**20:,.0f} MiB.",
            "error: of the int8 tensor against the model's own, root mean square, relative, with all errors before it. "
            f"Rounding: {'half to even' if self.quantized.rounding == 'half_even' else 'half up'}.",
        ]
        return "\n".join(lines)
