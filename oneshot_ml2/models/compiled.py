"""What compiling gives, of a whole model or of layers: figures, report, page, and what runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute, report, samples, task
from oneshot_ml2.models import page as html_page
from oneshot_ml2.models.executable import Executable, save, writing
from oneshot_ml2.spaces.registry import backend as schedule_backend
from oneshot_ml2.vta.program import INSN_BYTES
from oneshot_ml2.vta.spread import spread

if TYPE_CHECKING:
    from oneshot_ml2.models.check import Checked
    from oneshot_ml2.models.costs import Cost
    from oneshot_ml2.models.hostpart import HostPart
    from oneshot_ml2.models.ir import Graph
    from oneshot_ml2.models.layout import Dram
    from oneshot_ml2.models.quantize.quantize import Quantized
    from oneshot_ml2.models.samples import Given
    from oneshot_ml2.models.task import Task
    from oneshot_ml2.network.picking import Pick
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload

# Bytes of DRAM that VTA's driver for Pynq gives in one allocation (its VTA_MAX_XFER).
ONE_ALLOCATION = 1 << 25


@dataclass(frozen=True)
class CompiledLayer:
    """An operator of a model, or a layer of a list: where it is computed, how, and what that takes.

    Attributes:
        count: how often it occurs; an operator of a model occurs once.
        shape: of its result.
        macs: multiplications of one occurrence.
        workload: what the VTA computes; None: an operator of the host.
        pick, cost: its schedule and what its program takes alone; None on the host.
        reason: why the host computes it; None: it does not.
        unscheduled: the VTA could, but has no legal schedule for it.
        exponent: that of its int8 result's scale; None: float32, or unknown.
        error: of its int8 result, relative, root mean square, with all errors before it; None where unknown.
        alone: the same if its operands are exact.
        wrong: elements of its program's result that differ from the reference; None: not checked.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    macs: int
    count: int = 1
    workload: Workload | None = None
    pick: Pick | None = None
    cost: Cost | None = None
    reason: str | None = None
    unscheduled: bool = False
    exponent: int | None = None
    error: float | None = None
    alone: float | None = None
    wrong: int | None = None

    @property
    def ok(self) -> bool:
        """Nothing is known to be wrong: its program ends, and its result equals the reference bit for bit."""
        return not self.wrong and not (self.cost is not None and self.cost.hang)

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints for it."""
        entry: dict[str, Any] = {
            "layer": self.name,
            "operator": self.operator,
            "count": self.count,
            "where": "host" if self.pick is None else "vta",
            "shape": list(self.shape),
            "macs": self.macs,
            "exponent": self.exponent,
            "error": self.error,
            "error_alone": self.alone,
        }
        if self.workload is not None:
            entry["workload"] = self.workload.to_dict()
        if self.pick is None or self.cost is None:
            return entry | {"reason": self.reason}
        pick, cost = self.pick, self.cost
        return entry | {
            "space": pick.space.kind,
            "index": int(pick.index),
            "schedule": dict(pick.schedule.knobs),
            "source": pick.source,
            "p_valid": tables.finite(pick.p_valid),
            "predicted_cycles": tables.finite(pick.predicted_cycles),
            "spread": tables.finite(pick.spread),
            "scored": pick.scored,
            "lowered": pick.lowered,
            "warnings": list(pick.warnings),
            "cycles": cost.cycles,
            "engine_bound": cost.bound,
            "limiting_engine": cost.limiting,
            "bound_share": cost.bound_share,
            "parts": dict(cost.parts),
            "instructions": len(pick.program.insns),
            "uops": len(pick.program.uops),
            "dram_bytes": cost.dram_bytes,
            "rows": cost.rows,
            "outputs": math.prod(self.shape),
            "wrong_outputs": self.wrong,
            "hang": cost.hang,
            "ok": self.ok,
        }


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
class Whole:
    """What only a whole model has.

    ``executable``: what runs; ``host``: what its host does; ``submissions``: what is launched, in order; ``dram``: the
    plan of the VTA's memory; ``checked``: None if nothing was checked.
    """

    executable: Executable
    host: HostPart
    submissions: tuple[Submission, ...]
    dram: Dram
    checked: Checked | None

    @property
    def largest(self) -> tuple[str, int]:
        """What the largest single buffer in the VTA's DRAM is, and its bytes."""
        sizes = {"none": 0}
        for submission, segment in zip(self.submissions, self.executable.segments, strict=True):
            program, layers = segment.program, submission.layers
            for buffer in program.buffers:
                number, _, what = buffer.name.partition(".")
                sizes[f"{what} of {layers[int(number)]}"] = program.buffer_bytes(buffer.name)
            joined = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
            sizes[f"instructions of {joined}"] = INSN_BYTES * len(program.insns)
        return max(sizes.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class CompiledModel:
    """A model, or layers, compiled for an accelerator.

    Attributes:
        layers: all operators in their order, or the chosen layers.
        seconds: wall time of each stage that there was.
        peak_bytes: the most memory that the process had so far; 0 where the system does not say.
        quantized: the integer graph, which `execute.execute` computes, and its errors; None: layers that were given.
        whole: None: layers that were given or chosen; they run one by one only.
        source: the float graph; None: layers that were given.
        task: what `evaluate` said of the data that `compile` was given; None: it was given none.
    """

    name: str
    accelerator: Accelerator
    layers: tuple[CompiledLayer, ...]
    seconds: Mapping[str, float]
    peak_bytes: int
    quantized: Quantized | None = None
    whole: Whole | None = None
    source: Graph | None = dataclasses.field(default=None, repr=False)
    task: Task | None = None

    @property
    def ok(self) -> bool:
        """What was checked is right, and every program ends."""
        checked = self.checked
        return all(layer.ok for layer in self.layers) and (checked is None or checked.ok)

    @property
    def checked(self) -> Checked | None:
        """How the whole model was checked; None: it was not."""
        return None if self.whole is None else self.whole.checked

    @property
    def graph(self) -> Graph:
        """The integer graph.

        Raises:
            ModelError: layers that were given have none.
        """
        if self.quantized is None:
            raise ModelError("layers that are given have no graph; compile a model")
        return self.quantized.graph

    @property
    def on_vta(self) -> tuple[CompiledLayer, ...]:
        """The layers that have a schedule."""
        return tuple(layer for layer in self.layers if layer.pick is not None)

    @property
    def layer_cycles(self) -> int:
        """Simulated cycles of all layers one by one, each as often as it occurs."""
        return sum(layer.count * layer.cost.cycles for layer in self.layers if layer.cost is not None)

    @property
    def cycles(self) -> int:
        """Simulated cycles of all submissions to the VTA; where there are none, `layer_cycles`."""
        if self.whole is None:
            return self.layer_cycles
        return sum(submission.cycles for submission in self.whole.submissions)

    @property
    def bound(self) -> int:
        """Engine bound of all layers, each as often as it occurs."""
        return sum(layer.count * layer.cost.bound for layer in self.layers if layer.cost is not None)

    @property
    def milliseconds(self) -> float:
        """``cycles`` at the accelerator's clock; on boards as the accelerator's, see :attr:`spread`."""
        return self.cycles / (self.accelerator.clock_mhz * 1e3)

    @property
    def spread(self) -> float | None:
        """Within which share of ``milliseconds`` two of three measured times lie; None: nothing is known of that."""
        return spread(self.accelerator)

    def macs(self) -> tuple[int, int]:
        """Multiplications on the VTA, and on the host."""
        total = sum(layer.count * layer.macs for layer in self.layers)
        vta = sum(layer.count * layer.macs for layer in self.on_vta)
        return vta, total - vta

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """As `Executable.run`.

        Raises:
            ModelError: also of layers, which are no whole model.
        """
        return self._whole().executable.run(inputs)

    def evaluate(self, data: Given, progress: bool = False) -> Task:
        """How well the compiled model does beside the float one, of each output; programs run on the simulator.

        Args:
            data: what calibration may be; arrays by name may also hold ``labels`` (numbers of the right classes, along
                the first axis as the inputs) and, by the outputs' names, what these should be.
            progress: show a bar on stderr.

        Raises:
            ModelError: data that does not fit the model; also of layers, which are no whole model.
        """
        graph, executable = self.source, self._whole().executable
        assert graph is not None and self.quantized is not None
        shapes = {tensor.name: tensor.shape for tensor in executable.outputs}
        fitted = task.fit(data, samples.expected_of(executable.inputs), shapes)

        def real(sample: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            outputs = execute.execute(graph, sample)
            return {title: outputs[name] for title, name in zip(graph.output_names, graph.outputs, strict=True)}

        return task.judge(fitted, shapes, executable.run, real, self.quantized.sample, progress)

    def save(self, folder: str | Path) -> None:
        """Write the folder that ``oneshot-ml2 run`` and `executable.load` take, see `executable.writing`.

        Raises:
            ModelError: also of layers, which are no whole model.
        """
        self._whole()
        with writing(folder) as place:
            self.write(place)

    def write(self, folder: Path) -> None:
        """As `save`, within `executable.writing`."""
        whole = self._whole()
        save(whole.executable, whole.host, folder, self.schedules(), self.to_dict(), self.html())

    def _whole(self) -> Whole:
        if self.whole is None:
            raise ModelError("layers are no model that runs; compile a whole model, without choosing layers")
        return self.whole

    def html(self) -> str:
        """A self-contained page with the report and what each layer does over time."""
        programs = {layer.name: layer.pick.program for layer in self.layers if layer.pick is not None}
        return html_page.page(self.to_dict(), programs)

    def schedules(self) -> list[dict[str, Any]]:
        """Each layer's schedule and where it comes from, for ``schedules.json``."""
        return [
            {
                "layer": layer.name,
                "workload": layer.workload.to_dict(),
                "space": layer.pick.space.kind,
                "space_version": schedule_backend(layer.pick.space.kind).version_of(layer.workload),
                "schedule": dict(layer.pick.schedule.knobs),
                "source": layer.pick.source,
                "predicted_cycles": tables.finite(layer.pick.predicted_cycles),
            }
            for layer in self.layers
            if layer.pick is not None and layer.workload is not None
        ]

    def too_large(self) -> list[str]:
        """A line if the VTA's memory is more than boards give in one allocation."""
        whole = self.whole
        if whole is None or whole.dram.total <= ONE_ALLOCATION:
            return []
        what, size = whole.largest
        return [
            f"the model needs {whole.dram.total / 2**20:,.1f} MiB of the VTA's DRAM in one piece (largest buffer: "
            f"{what}, {size / 2**20:,.1f} MiB); VTA's driver for Pynq allocates up to {ONE_ALLOCATION >> 20} MiB at "
            "once: take a board with more, smaller inputs or a smaller model"
        ]

    def unscheduled(self) -> list[str]:
        """A line for each layer that the host computes for want of a schedule; of a model's, those that multiply."""
        total = max(sum(self.macs()), 1)
        lines = []
        for layer in self.layers:
            if layer.unscheduled and (layer.macs or self.quantized is None):
                line = tables.on_host(layer.name, str(layer.reason))
                share = "" if self.whole is None else f" ({layer.macs / total:.1%} of the model's MACs)"
                lines.append(line + share)
        return lines

    def warnings(self) -> list[str]:
        """What the missing schedules, the quantization and the picks warn of, one line each."""
        about: dict[str, list[str]] = {}
        picked = [(layer.name, layer.pick) for layer in self.layers if layer.pick is not None]
        for name, pick in picked:
            for warning in pick.warnings:
                about.setdefault(warning, []).append(name)
        return [
            *self.unscheduled(),
            *self.too_large(),
            *(() if self.quantized is None else self.quantized.warnings),
            *(
                f"{'all layers' if len(names) == len(picked) else ', '.join(names)}: {warning}"
                for warning, names in about.items()
            ),
        ]

    def report(self) -> str:
        """The table, a row a layer, and the totals."""
        return report.text(self)

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints. What only whole models have is null, empty or 0 of layers."""
        quantized, whole, checked = self.quantized, self.whole, self.checked
        on_vta, on_host = self.macs()
        total = max(on_vta + on_host, 1)
        submissions: list[dict[str, Any]] = []
        if whole is not None:
            wrong = [None] * len(whole.submissions) if checked is None else checked.submissions
            submissions = [
                dataclasses.asdict(entry) | {"wrong_outputs": n} for entry, n in zip(whole.submissions, wrong)
            ]
        return {
            "model": self.name,
            "accelerator": json.loads(self.accelerator.to_json()) | {"name": self.accelerator.name},
            "quantization": None if quantized is None else quantized.kind,
            "calibration": None if quantized is None else {"samples": quantized.samples, "source": quantized.source},
            "rounding": None if quantized is None else quantized.rounding,
            "changes": [] if quantized is None else list(quantized.changes),
            "warnings": self.warnings(),
            "hurt": [] if quantized is None else [dataclasses.asdict(hurt) for hurt in quantized.hurt],
            "task": None if self.task is None else dataclasses.asdict(self.task),
            "losses": [] if quantized is None else [dataclasses.asdict(loss) for loss in quantized.losses],
            "ok": self.ok,
            "checked": None if checked is None else {
                "outputs": checked.outputs,
                "largest_difference": tables.finite(checked.largest),
                "allowed_difference": checked.allowed,
                "operands_that_differ": checked.flips,
                "steps": checked.steps,
            },
            "cycles": self.cycles,
            "layer_cycles": self.layer_cycles,
            "engine_bound": self.bound,
            "milliseconds": self.milliseconds,
            "milliseconds_spread": self.spread,
            "macs_vta": on_vta,
            "macs_host": on_host,
            "host_shares": {
                layer.name: layer.macs / total for layer in self.layers if layer.pick is None and layer.macs
            },
            "seconds": dict(self.seconds),
            "peak_bytes": self.peak_bytes,
            "dram": None if whole is None else dataclasses.asdict(whole.dram) | {
                "largest": dict(zip(("buffer", "bytes"), whole.largest)),
            },
            "submissions": submissions,
            "layers": [layer.to_dict() for layer in self.layers],
        }  # fmt: skip
