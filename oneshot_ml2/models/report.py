"""The printed report of what was compiled: a row a layer, then the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from oneshot_ml2.common import tables
from oneshot_ml2.models import task
from oneshot_ml2.models.quantize import losses
from oneshot_ml2.spaces import space
from oneshot_ml2.vta.breakdown import PARTS
from oneshot_ml2.vta.spread import spread_words
from oneshot_ml2.workload import base

if TYPE_CHECKING:
    from oneshot_ml2.models.compiled import CompiledLayer, CompiledModel, Whole
    from oneshot_ml2.models.costs import Cost
    from oneshot_ml2.models.quantize.quantize import Quantized

_TEXTS = ("layer", "shape", "schedule", "source", "result")
_LEGEND = (
    "schedule: tile co x h x w x ci, outer loop / resident operand, buffers INP/WGT/ACC (all knobs: --json). "
    "load, store: compute waits for them."
)
_ROWS = " rows: of LOADs and of STOREs, each of which waits for itself on the HLS design."


def text(model: CompiledModel) -> str:
    """The table and the totals of a model, or of layers."""
    chip, whole = model.accelerator, model.whole
    sources = Counter(layer.pick.source for layer in model.on_vta if layer.pick is not None)
    times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in model.seconds.items())
    memory = f"; peak memory {model.peak_bytes / 2**20:,.0f} MiB" if model.peak_bytes else ""
    of_bound = tables.percent(model.bound / max(model.cycles, 1))
    time = f"{model.milliseconds:.2f} ms{spread_words(model.spread)} at {chip.clock_mhz} MHz"
    total = f"{model.name} on {chip.name}: {model.cycles:,} cycles, {time}"
    return "\n".join(
        [
            _table(model),
            "",
            f"{total}, {of_bound} of the engine bound; {_checked(model)}",
            *([] if whole is None else _whole(model, whole)),
            "Picks: " + (", ".join(f"{count} {source}" for source, count in sources.most_common()) or "none") + ".",
            *(() if model.quantized is None else _calibration(model.quantized)),
            *(f"Warning: {warning}." for warning in model.warnings()),
            *(() if model.quantized is None else _hurt(model.quantized)),
            *(() if model.task is None else task.lines(model.task)),
            f"Wall time: {times}{memory}.",
            _LEGEND if chip.hls is None else _LEGEND + _ROWS,
            *([] if model.quantized is None else [_error(model.quantized)]),
        ]
    )


def _table(model: CompiledModel) -> str:
    """A row a layer, then the sums in which each layer counts as often as it occurs; columns with no entry go."""
    header = (
        "layer", "x", "shape", "schedule", "source", "predicted", "cycles", "of bound",
        "GEMM", "reset+ALU", "load", "store", "rest", "KiB", "rows", "alone", "error", "result",
    )  # fmt: skip
    told = {layer.name for layer in model.layers if layer.unscheduled and (layer.macs or model.quantized is None)}
    rows = [_row(layer, layer.name in told) for layer in model.layers]
    if model.on_vta:
        rows.append(_sums(model))
    used = [
        index
        for index, name in enumerate(header)
        if (name != "x" or any(layer.count > 1 for layer in model.layers)) and any(row[index] for row in rows)
    ]
    return tables.table([header[i] for i in used], [[row[i] for i in used] for row in rows], left=_TEXTS)


def _row(layer: CompiledLayer, told: bool) -> tuple[str, ...]:
    """``told``: a line below the table says why the layer is on the host."""
    errors = ("" if error is None else f"{error:.2%}" for error in (layer.alone, layer.error))
    pick, cost = layer.pick, layer.cost
    shape = f"{'x'.join(map(str, layer.shape[1:]))} {layer.operator}"
    if layer.workload is not None:
        shape = base.short_workload(layer.workload)
    if pick is None or cost is None:
        reason = "none" if told else layer.reason or ""
        return (layer.name, str(layer.count), shape, reason, "host", *[""] * 10, *errors, "")
    result = "HANGS" if cost.hang else f"WRONG: {layer.wrong:,}" if layer.wrong else "exact"
    return (
        layer.name,
        str(layer.count),
        shape,
        space.short_schedule(pick.schedule),
        pick.source,
        f"{pick.predicted_cycles:,.0f}",
        f"{cost.cycles:,}",
        tables.percent(cost.bound_share),
        *(f"{cost.parts[part] / cost.cycles:.0%}" for part in PARTS),
        f"{cost.dram_bytes / 1024:,.0f}",
        "" if cost.rows is None else "{:,}+{:,}".format(*cost.rows),
        *errors,
        "" if layer.wrong is None and not cost.hang else result,
    )


def _sums(model: CompiledModel) -> tuple[str, ...]:
    costs = [(layer.count, layer.cost) for layer in model.layers if layer.cost is not None]
    predicted = sum(layer.count * layer.pick.predicted_cycles for layer in model.layers if layer.pick is not None)
    shares = (sum(count * cost.parts[part] for count, cost in costs) / model.layer_cycles for part in PARTS)
    known = any(layer.wrong is not None for layer in model.layers) or not model.ok
    return (
        "total",
        str(sum(count for count, _ in costs)),
        *("", "", ""),
        f"{predicted:,.0f}",
        f"{model.layer_cycles:,}",
        tables.percent(model.bound / model.layer_cycles),
        *(f"{share:.0%}" for share in shares),
        f"{sum(count * cost.dram_bytes for count, cost in costs) / 1024:,.0f}",
        _all_rows(costs),
        *("", ""),
        ("exact" if model.ok else "WRONG") if known else "",
    )


def _all_rows(costs: Sequence[tuple[int, Cost]]) -> str:
    """Rows of LOADs and of STOREs of all layers, each as often as it occurs; empty on the RTL."""
    known = [(count, cost.rows) for count, cost in costs if cost.rows is not None]
    return "+".join(f"{sum(count * rows[k] for count, rows in known):,}" for k in (0, 1)) if known else ""


def _checked(model: CompiledModel) -> str:
    """How many layers are right, as far as they were checked, and what was checked beside them."""
    layers, checked = model.on_vta, model.checked
    right = sum(layer.ok for layer in layers)
    if model.whole is None:
        if any(layer.wrong is None and layer.ok for layer in layers):
            return "not checked."
        return f"{right} of {len(layers)} results equal the reference bit for bit."
    if checked is None:
        return "not checked."
    end = "equals it"
    if checked.outputs:
        differs = "differs" if checked.largest <= checked.allowed else "DIFFERS"
        end = f"{differs} by at most {checked.largest:.2g} (allowed: {checked.allowed:.2g})"
    if checked.flips:
        # Every submission was checked by itself, with the reference's results as the host's operands.
        end += (
            f"; of what the host computes in float32 {checked.flips} int8 numbers differ, by at most {checked.steps} "
            f"step{'' if checked.steps == 1 else 's'}"
        )
    elif checked.allowed:
        end += "; so does what the host computes in float32, once it is int8"
    return (
        f"{right} of {len(layers)} VTA layers equal the integer reference bit for bit, and so do "
        f"{checked.submissions.count(0)} of {len(checked.submissions)} submissions; the whole model's output {end}."
    )


def _whole(model: CompiledModel, whole: Whole) -> list[str]:
    """What only a whole model has: submissions, the share of the host, and the plan of its DRAM."""
    on_vta, on_host = model.macs()
    total, dram = max(on_vta + on_host, 1), whole.dram
    what, size = whole.largest
    submissions = f"{len(whole.submissions)} submission{'' if len(whole.submissions) == 1 else 's'}"
    return [
        f"{len(model.on_vta)} layers in {submissions}; one by one they take {model.layer_cycles:,} cycles. "
        f"{on_vta / total:.1%} of {total:,} MACs on the VTA, {on_host / total:.1%} on the host.",
        f"DRAM of the VTA: {dram.total / 2**20:,.2f} MiB: weights and biases {dram.constants / 2**20:,.2f}, programs "
        f"{dram.code / 2**20:,.2f}, activations {dram.activations / 2**20:,.2f} ({dram.separate / 2**20:,.2f} if no "
        f"layers shared any). Largest buffer: {what}, {size / 2**20:,.2f} MiB.",
    ]


def _calibration(quantized: Quantized) -> list[str]:
    """On what a model was calibrated, and what that changed."""
    several = "" if quantized.samples == 1 else "s"
    return [
        f"Calibration: {quantized.samples} sample{several} ({quantized.source}).",
        *(f"Changed: {change}." for change in quantized.changes),
    ]


def _hurt(quantized: Quantized) -> list[str]:
    """The layers that cost the outputs most, and what would help."""
    if not quantized.hurt:
        return []
    return [
        "Hurt most (what the layer alone moves the outputs by):",
        *(
            f"  {of.layer}: {of.outputs:.2%} (its result: {of.alone:.2%}); {advice}."
            for of, advice in zip(quantized.hurt, losses.said_once([of.advice for of in quantized.hurt]), strict=True)
        ),
    ]


def _error(quantized: Quantized) -> str:
    return (
        "alone, error: of the int8 tensor against the model's own, root mean square, relative; alone: of a layer whose "
        "operands are exact, error: with all errors before it. "
        f"Rounding: {'half to even' if quantized.rounding == 'half_even' else 'half up'}."
    )
