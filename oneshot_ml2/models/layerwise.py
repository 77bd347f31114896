"""Every layer of a model, from its graph to programs that have run on the simulator.

All layers are picked and lowered before the first program is executed or timed: that is what zero measurements mean.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.models.frontend.traced import trace
from oneshot_ml2.models.unfold import unfolded
from oneshot_ml2.network import picking
from oneshot_ml2.spaces import space
from oneshot_ml2.vta import image, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.breakdown import PARTS, split_cycles
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.vta.timing import chisel
from oneshot_ml2.workload import base

if TYPE_CHECKING:
    from tqdm import tqdm

    from oneshot_ml2.network.picking import Pick
    from oneshot_ml2.vta.bound import EngineBound
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload.lists import Layer
    from oneshot_ml2.workload.registry import Workload

STAGES = ("trace", "pick", "lower", "simulate")


@dataclass(frozen=True)
class CompiledLayer:
    """A layer with its pick, its program and what the simulator made of it.

    Attributes:
        cycles: simulated, from launch to FINISH; of one occurrence of the layer.
        hang: the program never reached FINISH (``cycles`` is then when it stopped).
        parts: ``PARTS`` -> cycles; they add up to ``cycles``.
        dram_bytes: bytes that LOADs and STOREs moved, pads not counted.
        outputs: elements of the result.
        wrong: how many of them differ from the reference.
    """

    layer: Layer
    pick: Pick
    program: Program
    bound: EngineBound
    cycles: int
    hang: bool
    parts: dict[str, int]
    dram_bytes: int
    outputs: int
    wrong: int

    @property
    def ok(self) -> bool:
        """The program ended, and its result equals the reference bit for bit."""
        return not self.hang and self.wrong == 0

    @property
    def bound_share(self) -> float:
        """Engine bound / simulated cycles, 0..1."""
        return self.bound.bound / self.cycles

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints for the layer."""
        return {
            "layer": self.layer.name,
            "count": self.layer.count,
            "workload": self.layer.workload.to_dict(),
            "space": self.pick.space.kind,
            "index": int(self.pick.index),
            "schedule": dict(self.pick.schedule.knobs),
            "source": self.pick.source,
            "p_valid": tables.finite(self.pick.p_valid),
            "predicted_cycles": tables.finite(self.pick.predicted_cycles),
            "spread": tables.finite(self.pick.spread),
            "scored": self.pick.scored,
            "lowered": self.pick.lowered,
            "warnings": list(self.pick.warnings),
            "cycles": self.cycles,
            "engine_bound": self.bound.bound,
            "limiting_engine": self.bound.limiting,
            "bound_share": self.bound_share,
            "parts": self.parts,
            "instructions": len(self.program.insns),
            "uops": len(self.program.uops),
            "dram_bytes": self.dram_bytes,
            "outputs": self.outputs,
            "wrong_outputs": self.wrong,
            "hang": self.hang,
            "ok": self.ok,
        }


@dataclass(frozen=True)
class HostLayer:
    """A layer that no schedule of the accelerator can compute, and why: the host has to."""

    layer: Layer
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints for it."""
        layer = self.layer
        return {
            "layer": layer.name,
            "count": layer.count,
            "workload": layer.workload.to_dict(),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class CompiledModel:
    """The layers of a model on an accelerator, and those that it has no schedule for.

    ``seconds`` is the wall time of each of ``STAGES``.
    """

    name: str
    accelerator: Accelerator
    layers: tuple[CompiledLayer, ...]
    seconds: dict[str, float]
    host: tuple[HostLayer, ...] = ()

    @property
    def ok(self) -> bool:
        """Every layer's result is right."""
        return all(layer.ok for layer in self.layers)

    @property
    def cycles(self) -> int:
        """Simulated cycles of all layers, each as often as it occurs."""
        return sum(layer.layer.count * layer.cycles for layer in self.layers)

    @property
    def bound(self) -> int:
        """Engine bound of all layers, each as often as it occurs."""
        return sum(layer.layer.count * layer.bound.bound for layer in self.layers)

    def warnings(self) -> list[str]:
        """What stays on the host for want of a schedule, and what lies outside the range that the network was trained
        on: one line each, with the layers it is about.
        """
        about: dict[str, list[str]] = {}
        for entry in self.layers:
            for warning in entry.pick.warnings:
                about.setdefault(warning, []).append(entry.layer.name)
        every = len(self.layers)
        return [
            *(tables.on_host(entry.layer.name, entry.reason) for entry in self.host),
            *(
                f"{'all layers' if len(names) == every else ', '.join(names)}: {warning}"
                for warning, names in about.items()
            ),
        ]

    @property
    def milliseconds(self) -> float:
        """``cycles`` at the accelerator's clock."""
        return self.cycles / (self.accelerator.clock_mhz * 1e3)

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "model": self.name,
            "accelerator": json.loads(self.accelerator.to_json()) | {"name": self.accelerator.name},
            "ok": self.ok,
            "cycles": self.cycles,
            "engine_bound": self.bound,
            "milliseconds": self.milliseconds,
            "seconds": self.seconds,
            "warnings": self.warnings(),
            "layers": [layer.to_dict() for layer in self.layers],
            "host": [layer.to_dict() for layer in self.host],
        }

    def report(self) -> str:
        """The table: a row a layer, then totals in which each layer counts as often as it occurs."""
        header = (
            "layer", "x", "shape", "schedule", "source", "predicted", "cycles", "of bound",
            "GEMM", "reset+ALU", "load", "store", "rest", "KiB", "result",
        )  # fmt: skip
        rows = [
            (
                entry.layer.name,
                str(entry.layer.count),
                base.short_workload(entry.layer.workload),
                space.short_schedule(entry.pick.schedule),
                str(entry.pick.source),
                f"{entry.pick.predicted_cycles:,.0f}",
                f"{entry.cycles:,}",
                tables.percent(entry.bound_share),
                *(f"{entry.parts[part] / entry.cycles:.0%}" for part in PARTS),
                f"{entry.dram_bytes / 1024:,.0f}",
                _result(entry),
            )
            for entry in self.layers
        ]
        for lost in self.host:
            named = (lost.layer.name, str(lost.layer.count), base.short_workload(lost.layer.workload), "none", "host")
            rows.append((*named, *[""] * (len(header) - len(named))))
        shares = [sum(entry.layer.count * entry.parts[part] for entry in self.layers) / self.cycles for part in PARTS]
        rows.append(
            (
                "total",
                str(sum(entry.layer.count for entry in self.layers)),
                *("", "", ""),
                f"{sum(entry.layer.count * entry.pick.predicted_cycles for entry in self.layers):,.0f}",
                f"{self.cycles:,}",
                tables.percent(self.bound / self.cycles),
                *(f"{share:.0%}" for share in shares),
                f"{sum(entry.layer.count * entry.dram_bytes for entry in self.layers) / 1024:,.0f}",
                "exact" if self.ok else "WRONG",
            )
        )
        right = sum(entry.ok for entry in self.layers)
        sources = Counter(str(entry.pick.source) for entry in self.layers)
        chip = self.accelerator
        lines = [
            tables.table(header, rows, left=("layer", "shape", "schedule", "source", "result")),
            "",
            *(f"Warning: {tables.on_host(lost.layer.name, lost.reason)}." for lost in self.host),
            f"{self.name} on {chip.name}: {self.cycles:,} cycles, {self.milliseconds:.2f} ms at {chip.clock_mhz} MHz; "
            f"{right} of {len(self.layers)} results equal the reference bit for bit.",
            "Picks: " + ", ".join(f"{count} {source}" for source, count in sources.most_common()) + ".",
            "Wall time: " + ", ".join(f"{stage} {self.seconds[stage]:.2f} s" for stage in STAGES) + ".",
            "schedule: tile co x h x w x ci, outer loop / resident operand, buffers INP/WGT/ACC (all knobs: --json). "
            "load, store: compute waits for them.",
        ]
        return "\n".join(lines)


def _result(entry: CompiledLayer) -> str:
    if entry.hang:
        return "HANGS"
    return "exact" if entry.ok else f"WRONG: {entry.wrong:,} of {entry.outputs:,}"


def _simulate(layer: Layer, pick: Pick, program: Program, seed: int) -> CompiledLayer:
    """Execute a layer's program on random tensors, hold its result against the reference, and time it."""
    workload, chip = layer.workload, program.accelerator
    tensors = workload.random_inputs(np.random.default_rng([seed, zlib.crc32(layer.name.encode())]))
    timed = chisel.measure(program, trace=True)
    expected = workload.reference(tensors)
    wrong = expected.size
    if not timed.hang:
        result = image.execute(program, workload, tensors)
        if result.shape == expected.shape and result.dtype == expected.dtype:
            wrong = int(np.count_nonzero(result != expected))
    assert timed.trace is not None
    parts = dict.fromkeys(PARTS, 0) | {"rest": timed.cycles}
    if not timed.hang:
        parts = split_cycles(program.insns, timed.trace, timed.cycles)
    moved = simulator.traffic(program.insns, chip)
    return CompiledLayer(
        layer=layer,
        pick=pick,
        program=program,
        bound=engine_bound(workload, chip),
        cycles=timed.cycles,
        hang=timed.hang,
        parts=parts,
        dram_bytes=sum(value for name, value in moved.items() if name.endswith("_nbytes")),
        outputs=expected.size,
        wrong=wrong,
    )


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of ``patterns`` (as in a shell), in their order; all of them if there are none.

    Raises:
        OneShotError: a pattern matches nothing (names the layers there are, with the closest one).
    """
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise OneShotError(unknown("layer", pattern, names, cutoff=0.4))
    return [name for name in names if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def select_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> list[Layer]:
    """The layers whose names match one of ``patterns``; see `matching`."""
    names = set(matching([layer.name for layer in layers], patterns))
    return [layer for layer in layers if layer.name in names]


def compile_layers(
    model: str | Sequence[Layer],
    accelerator: Accelerator | str | Path = "pynq",
    *,
    size: int = 224,
    layers: Sequence[str] = (),
    weights: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CompiledModel:
    """Pick, lower and then run every convolution and dense layer of a model.

    A named model's convolution of the image, of fewer channels than a block, is compiled over patches that the host
    makes, where that is faster (`unfold`).

    Args:
        model: a name that `models.trace` knows, or layers.
        accelerator: one, or what `Accelerator.load` takes.
        size: height and width of a named model's images, or its number of tokens.
        layers: names or shell patterns of those to compile; none: all.
        weights: shipped weights by name, or a safetensors file; none: the default ones.
        seed: of the tensors that the programs run on.
        progress: show a bar on stderr.

    Warns:
        RuntimeWarning: a result differs from its reference (``ok`` is then False).

    Raises:
        OneShotError: unknown names, unusable weights.
        InvalidSchedule: none of the layers has a legal schedule. Where some have, the others are the result's ``host``.
    """
    from tqdm import tqdm

    chip = accelerator if isinstance(accelerator, Accelerator) else Accelerator.load(accelerator)
    seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - begin

    with stage("trace"):
        traced = trace(model, size) if isinstance(model, str) else list(model)
        chosen = select_layers(over_patches(traced, chip) if isinstance(model, str) else traced, layers)
    with tqdm(
        total=3 * len(chosen), unit="step", file=sys.stderr, leave=False, disable=None if progress else True
    ) as bar:
        programs, compiled = [], []
        with stage("pick"):
            picks, host = _picked(chosen, chip, weights, bar)
            bar.total -= 2 * len(host)
        # The picks lowered theirs already; once more, so that the stage shows what lowering takes.
        with stage("lower"):
            for layer, pick in picks:
                bar.set_description(f"lower {layer.name}")
                programs.append(pick.space.lower(pick.index))
                bar.update()
        with stage("simulate"):
            for (layer, pick), program in zip(picks, programs):
                bar.set_description(f"simulate {layer.name}")
                compiled.append(_simulate(layer, pick, program, seed))
                bar.update()
    name = model if isinstance(model, str) else "layers"
    result = CompiledModel(name, chip, tuple(compiled), seconds, tuple(host))
    if not result.ok:
        wrong = ", ".join(entry.layer.name for entry in compiled if not entry.ok)
        warnings.warn(f"results differ from the reference: {wrong}", RuntimeWarning, stacklevel=2)
    return result


def _picked(
    layers: Sequence[Layer], chip: Accelerator, weights: str | Path | None, bar: tqdm[Any]
) -> tuple[list[tuple[Layer, Pick]], list[HostLayer]]:
    """The layers with their picks, and those without a legal schedule.

    Raises:
        InvalidSchedule: no layer has one.
    """
    names = {layer.workload: layer.name for layer in reversed(layers)}

    def done(workload: Workload) -> None:
        bar.set_description(f"pick {names[workload]}")
        bar.update()

    found = picking.pick_all([layer.workload for layer in layers], chip, weights, done)
    picks, host = [], []
    for layer in layers:
        pick = found[layer.workload]
        if not isinstance(pick, InvalidSchedule):
            picks.append((layer, pick))
            continue
        host.append(HostLayer(layer, str(pick)))
        if len(host) == len(layers):
            raise pick
    return picks, host


def over_patches(layers: Sequence[Layer], chip: Accelerator) -> list[Layer]:
    """A named model's layers as they are compiled: convolutions of few channels over patches, where that is faster."""
    return [replace(layer, workload=unfolded(layer.workload, chip) or layer.workload) for layer in layers]
