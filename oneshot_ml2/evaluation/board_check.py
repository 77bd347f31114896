"""The timing models and the network held against measurements of boards of the HLS design."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.metrics import kendall_tau
from oneshot_ml2.common.tables import finite
from oneshot_ml2.devices.board_files import (
    CORRECT,
    DEVICE,
    OUTCOMES,
    RUN_TIME,
    TIMED,
    UNTRIED,
    WALL,
    BoardFile,
    BoardLayer,
    Record,
)
from oneshot_ml2.evaluation import board_plot
from oneshot_ml2.evaluation.board_fit import AROUND, fit
from oneshot_ml2.network import picking
from oneshot_ml2.vta.hls_keys import KEYS, HlsTiming, field_of
from oneshot_ml2.vta.program import element_bytes
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs, records
from oneshot_ml2.vta.timing.hls_fit import FITTED, Fit, Paths, as_timing, solve

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Ways to choose in a pool: the network, the two timing models, and the fewest bytes moved.
CHOICES = ("network", "hls", "chisel", "dma_bytes")


@dataclass(frozen=True)
class _Pool:
    """The distinct correct configurations of a layer that lower.

    ``indices``: int64 (n,); ``cycles``, ``rtl``: int64 (n,), by the HLS and the RTL's model; ``insns``: int64 (n,),
    instructions; ``moved``: int64 (n,), bytes of LOADs and STOREs of inputs, weights and outputs; ``times``: of each
    configuration, kind -> seconds; empty: it has none.
    """

    indices: NDArray[np.int64]
    cycles: NDArray[np.int64]
    rtl: NDArray[np.int64]
    insns: NDArray[np.int64]
    moved: NDArray[np.int64]
    times: tuple[Mapping[str, float], ...]

    def measured(self, kinds: Sequence[str]) -> NDArray[np.float64]:
        """Seconds (n,), of each configuration the kind that ``kinds`` (n,) names."""
        return np.array([times[kind] for times, kind in zip(self.times, kinds, strict=True)])

    def predicted(self, cycles: NDArray[Any], chip: Accelerator, kinds: Sequence[str]) -> NDArray[np.float64]:
        """Seconds (n,) of such ``cycles`` (n,) with all that times of these kinds hold beside them."""
        around = np.array([sum(getattr(chip.hls, name) for name in AROUND[kind]) for kind in kinds])
        assert chip.hls is not None
        host = np.where(np.array(kinds) == WALL, self.insns * chip.hls.host_instruction, 0)
        return cycles / (chip.clock_mhz * 1e6) + (around + host) * 1e-9


def _moved(insns: Any, sizes: Sequence[int]) -> int:
    """Bytes that LOADs of the load module and STOREs move."""
    moves = insns[(insns["op"] <= 1) & (insns["x"] > 0)]
    moves = moves[(moves["op"] == 1) | np.isin(moves["mem"], (1, 2))]
    return int((moves["x"] * moves["y"] * np.array(sizes)[moves["mem"]]).sum())


def _pool(layer: BoardLayer, chip: Accelerator, sound: NDArray[np.int64]) -> _Pool:
    params, sizes, nothing = records.params(chip), element_bytes(chip), records.nothing()
    rtl = records.params(dataclasses.replace(chip, hls=None))
    rows = []
    for insns in layer.programs(chip, sound):
        program = np.ascontiguousarray(insns)
        both = [int(designs.simulate(program, 0, p, nothing)[0]) for p in (params, rtl)]
        rows.append([*both, len(program), _moved(program, sizes)])
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
    times = tuple(layer.timed.get(index, {}) for index in sound.tolist())
    cycles, by_rtl, counts, moved = table.T
    return _Pool(sound, cycles, by_rtl, counts, moved, times)


def _genuine(layer: BoardLayer, chip: Accelerator) -> NDArray[np.bool_]:
    """Of each record whether its knobs are those that its index has in TVM's space."""
    if layer.workload is None:
        return np.ones(len(layer.records), dtype=bool)
    space = layer.space(chip)
    found = np.zeros(len(layer.records), dtype=bool)
    inside = [i for i, record in enumerate(layer.records) if record.index < len(space)]
    if inside:
        values = space.values(np.array([layer.records[i].index for i in inside]))
        found[inside] = [tuple(row) == layer.records[i].knobs for i, row in zip(inside, values.tolist(), strict=True)]
    if not found.any() and len(found) > 1:
        raise OneShotError(f"layer {layer.name}: knobs that are not those of the indices; another template's space?")
    return found


def _ended(layer: BoardLayer, chip: Accelerator, indices: Sequence[int]) -> set[int]:
    """Those of some valid configurations whose call would take longer than whoever measured waited for."""
    if layer.limit is None or not indices:
        return set()
    pool = _pool(layer, chip, np.unique(np.array(indices, dtype=np.int64)))
    late = pool.predicted(pool.cycles, chip, [WALL] * len(pool.indices)) > layer.limit
    return set(pool.indices[late].tolist())


def _validity(
    layer: BoardLayer, chip: Accelerator, genuine: NDArray[np.bool_]
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]], NDArray[np.int64]]:
    """How often our validity agrees with each class of outcomes, the records that it does not explain, and the indices
    (n,) of the timed configurations that it calls valid."""
    reasons, lowers = np.zeros((2, len(layer.records)), dtype=np.uint8)
    if layer.workload is not None:
        places = np.flatnonzero(genuine)
        indices = np.array([layer.records[i].index for i in places], dtype=np.int64)
        reasons[places] = layer.space(chip).validity(indices)
        lowers[places] = layer.space(dataclasses.replace(chip, hls=None)).validity(indices)
        failed = [layer.records[i].outcome == RUN_TIME and reasons[i] == Reason.VALID for i in places]
        ended = _ended(layer, chip, indices[failed].tolist())
        for i in places[failed]:
            if layer.records[i].index in ended:
                reasons[i] = Reason.TIMEOUT
    counts: dict[str, dict[str, int]] = {}
    unexplained, sound = [], []
    rows = zip(layer.records, reasons.tolist(), lowers.tolist(), genuine.tolist(), strict=True)
    for record, reason, rtl, known in rows:
        if record.outcome == UNTRIED:
            continue
        ours = Reason(reason).label if known else "unknown knobs"
        # What only the HLS design gets wrong runs there as well, if nobody looks at its result.
        expected = rtl if record.outcome == TIMED else reason
        agree = known and (expected == Reason.VALID) == (record.outcome in (CORRECT, TIMED))
        count = counts.setdefault(record.outcome, {"agree": 0, "disagree": 0})
        count["agree" if agree else "disagree"] += 1
        if not agree:
            unexplained.append(_named(layer, record, ours))
        elif reason == Reason.VALID and record.seconds:
            sound.append(record.index)
    ordered = {outcome: counts[outcome] for outcome in OUTCOMES if outcome in counts}
    return ordered, unexplained, np.unique(np.array(sound, dtype=np.int64))


def _named(layer: BoardLayer, record: Record, ours: str) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "board": layer.board,
        "index": record.index,
        "knobs": list(record.knobs),
        "measured": record.outcome,
        "ours": ours,
    }


def _network_choice(layer: BoardLayer, pool: _Pool, chip: Accelerator, kinds: Sequence[str]) -> int | None:
    """Position of what the shipped weights choose in a pool without any measurement of it."""
    if layer.workload is None:
        return None
    scores = picking.score(layer.space(chip), pool.indices)
    trusted = picking.best_of(scores, len(pool.indices))
    return int(trusted[np.argmin(pool.predicted(scores.cost, chip, kinds)[trusted])])


def _regrets(layer: BoardLayer, pool: _Pool, chip: Accelerator, network: bool) -> dict[str, float | None]:
    """`CHOICES` -> board time of what is chosen / the least of the pool - 1.

    All times of a pool are of one kind: of the device if they all have that, else whole calls.
    """
    regret: dict[str, float | None] = dict.fromkeys(CHOICES)
    if not len(pool.indices):
        return regret
    kind = next(k for k in (DEVICE, WALL, *AROUND) if all(k in times for times in pool.times))
    kinds = [kind] * len(pool.indices)
    measured = pool.measured(kinds)
    chosen: dict[str, int | None] = {
        "network": _network_choice(layer, pool, chip, kinds) if network else None,
        "hls": int(np.argmin(pool.predicted(pool.cycles, chip, kinds))),
        "chisel": int(np.argmin(pool.predicted(pool.rtl, chip, kinds))),
        "dma_bytes": int(np.argmin(pool.moved)),
    }
    for name, place in chosen.items():
        regret[name] = None if place is None else float(measured[place] / measured.min() - 1)
    return regret


@dataclass(frozen=True)
class Held:
    """A layer held against its board.

    ``row``: of `check`; ``unexplained``: the records that our validity does not explain; ``predicted``, ``measured``:
    float64 (n,), seconds of the configurations.
    """

    row: dict[str, Any]
    unexplained: list[dict[str, Any]]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]


def check_layer(layer: BoardLayer, chip: Accelerator, network: bool) -> Held:
    """Hold us against one layer."""
    validity, unexplained, sound = _validity(layer, chip, _genuine(layer, chip))
    pool = _pool(layer, chip, sound)
    kinds = [next(kind for kind in (DEVICE, WALL, *AROUND) if kind in times) for times in pool.times]
    predicted, measured = pool.predicted(pool.cycles, chip, kinds), pool.measured(kinds)
    row = {
        "layer": layer.name,
        "board": layer.board,
        "timed": len(layer.timed),
        "median_error": float(np.median(np.abs(predicted / measured - 1))) if len(measured) else None,
        "kendall_tau": finite(kendall_tau(predicted, measured)),
        "regret": _regrets(layer, pool, chip, network),
        "validity": validity,
    }
    return Held(row, unexplained, predicted, measured)


class Fits:
    """The parameters of each board by all layers but the one that they are held against."""

    def __init__(self, layers: Sequence[BoardLayer], board: str, chip: Accelerator) -> None:
        """Fit an accelerator to the layers of a board; raises OneShotError where there are none."""
        self._layers = [layer for layer in layers if layer.board == board]
        if not self._layers:
            raise OneShotError(f"--fit: no measurement of {board} in these files; give one of that board")
        self._chip = chip
        self.fit: Fit
        self._paths: Paths
        self.fit, self._paths = fit(self._layers, chip)

    def without(self, layer: BoardLayer) -> Accelerator:
        """The accelerator as fitted to all others; the paths stay those of the fit to all.

        Raises:
            OneShotError: it is the only layer to fit to.
        """
        timing = self.fit.timing
        for group, other in enumerate(self._layers):
            if other.key == layer.key:
                rest = self._paths.without(group)
                if not len(rest.seconds):
                    raise OneShotError(f"--fit: {layer.name} is all there is to fit to; give other layers of the board")
                start = np.array([getattr(timing, name) for name in FITTED], dtype=np.float64)
                timing = as_timing(solve(rest, start)[0], timing)
        return dataclasses.replace(self._chip, hls=timing)


def check(
    files: Sequence[BoardFile],
    given: Accelerator | None,
    fitted: Sequence[BoardFile] = (),
    network: bool = True,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Hold us against files of boards.

    Args:
        given: the accelerator in place of each board's own.
        fitted: files that the parameters are fitted to first; a layer that is held against them is left out then.
        network: also choose by the shipped weights.
        plot: picture of predicted over measured times to write, by layer.

    Returns:
        ``layers``: a row a workload; ``unexplained``: records whose outcome our validity does not explain;
        ``fits``: of each board the parameters found, their standard errors and how many measurements they are from.

    Raises:
        OneShotError: files of another VTA than the accelerator, or nothing to fit to.
        ModuleNotFoundError: a plot is asked for, and matplotlib is not installed.
    """
    fits: dict[str, Fits] = {}
    held: list[Held] = []
    for file in files:
        chip = file.accelerator(given)
        if chip.hls is None:
            raise OneShotError(f"--accelerator {chip.name}: the boards are of the HLS design; give one with DESIGN hls")
        if fitted and file.board not in fits:
            for other in fitted:
                if other.board == file.board:
                    other.accelerator(given)
            fits[file.board] = Fits([layer for f in fitted for layer in f.layers], file.board, chip)
        for layer in file.layers:
            used = fits[file.board].without(layer) if fitted else chip
            held.append(check_layer(layer, used, network))
    if plot is not None:
        points = [(one.row["board"], one.row["layer"], one.predicted, one.measured) for one in held]
        write_whole(plot, board_plot.draw(board_plot.panels_of(points)))
    shown = {board: _shown(found.fit) for board, found in fits.items()}
    unexplained = [record for one in held for record in one.unexplained]
    return {"layers": [one.row for one in held], "unexplained": unexplained, "fits": shown}


def _shown(found: Fit) -> dict[str, Any]:
    """A fit as keys of an accelerator's JSON, each with its standard error and unit."""
    keys = [key for key in KEYS if field_of(key) in FITTED]
    timing: HlsTiming = found.timing
    return {
        "measurements": found.measurements,
        "parameters": {
            key: {
                "value": getattr(timing, field_of(key)),
                "error": round(found.errors[field_of(key)], 1),
                "unit": KEYS[key].unit,
            }
            for key in keys
        },
    }
