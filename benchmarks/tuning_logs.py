"""Tuners, the zero-measurement choice and `finetune` on what real boards did: the part of `tuning_study.py --logs`.

A layer of a file of measurements (`log:FILE`) is a pool: all schedules that the board tried, whatever became of them.
Tuners propose nothing else; a trial that has no time is invalid, whichever error it was. Nothing here is fitted to the
files but what a tuner, or `finetune`, learns of the trials that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.metrics import geometric_mean, kendall_tau
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.common.tables import finite
from oneshot_ml2.devices.board_files import BoardLayer, board_file, is_board_file
from oneshot_ml2.devices.log import LogDevice
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.tuning import calibrate, finetune
from oneshot_ml2.tuning.base import Domain
from oneshot_ml2.tuning.log import trials_to
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

TUNERS = (
    "random", "autotvm", "autotvm-visible", "rieber+autotvm", "validity+autotvm", "ml2-published", "ml2-scratch",
    "ml2-warm",
)  # fmt: skip
BASELINE = "autotvm"
# Schedules with a time that a layer must have to be a pool.
LEAST = 20
# Measurements that `finetune` gets of one layer before it is judged on another.
BUDGET = 64


@dataclass(frozen=True)
class Pool:
    """What a board tried of a layer: ``layer`` of the file that ``device`` answers from, on ``chip``."""

    layer: BoardLayer
    device: LogDevice
    chip: Accelerator

    @property
    def name(self) -> str:
        return f"{self.layer.board} {self.layer.name}"

    @cached_property
    def domain(self) -> Domain:
        space = self.layer.space(self.chip)
        return Domain.of(space, self.device.measured(space))

    @cached_property
    def table(self) -> BatchResult:
        """What became of every schedule of the domain."""
        return self.device.measure_schedules(self.domain.space, self.domain.indices)

    @cached_property
    def best(self) -> int:
        """The least cycles."""
        return int(self.table.cycles[self.table.cycles > 0].min())


def pools(files: Sequence[Path], accelerator: Accelerator | None = None) -> list[Pool]:
    """The layers of files with enough times.

    Raises:
        OneShotError: no measurements of boards of the HLS design, or of another VTA; or none is a pool.
    """
    found = []
    for path in files:
        tree = read_json(path, DeviceError)
        if not is_board_file(tree):
            raise DeviceError(f"{path}: no measurements of a board of the HLS design; give files that log:FILE takes")
        file = board_file(path, tree)
        device, chip = LogDevice(file), file.accelerator(accelerator)
        layers = [layer for layer in file.layers if layer.workload is not None and len(layer.timed) >= LEAST]
        found += [Pool(layer, device, chip) for layer in layers]
    if not found:
        raise DeviceError(f"no layer of these files has {LEAST} schedules with a time; give files of whole campaigns")
    return found


# Without measurements --------------------------------------------------------------------------
def choose(pool: Pool) -> dict[str, Any]:
    """The schedule of a pool that the shipped network ranks first, with no measurement of it, and what the board said.

    As a pick is made: among what the network trusts the first that the closed form calls legal. Times of a call hold
    what the host takes to generate instructions, so that is added, too.
    """
    space, indices = pool.domain.space, pool.domain.indices
    network = picking.predictor_of(None, space.kind, pool.chip.design)
    scores = network.score(space, indices)
    given = network.features.candidates_at(space, indices)
    effort = calibrate.boards_of(space.kind).effort(space, given, calibrate.traffic_of(space, given))
    assert pool.chip.hls is not None
    host = effort.instructions * pool.chip.hls.host_instruction * 1e-3 * pool.chip.clock_mhz
    trusted = picking.best_of(scores, len(indices))
    order = trusted[np.argsort((scores.cost + host)[trusted], kind="stable")]
    legal = order[space.validity(indices[order]) == Reason.VALID]
    place = int((legal if len(legal) else order)[0])
    cycles = int(pool.table.cycles[place])
    return {
        "task": pool.name,
        "tuner": "network",
        "seed": 0,
        "tried": len(indices),
        "timed": int((pool.table.cycles > 0).sum()),
        "outcome": Reason(int(pool.table.reason[place])).label,
        "regret": cycles / pool.best - 1.0 if cycles > 0 else None,
        # Without the closed form: what the network alone would have had measured first.
        "outcome_alone": Reason(int(pool.table.reason[order[0]])).label,
    }


# With a few --------------------------------------------------------------------------------------
def run_one(pool: Pool, tuner: str, seed: int, batch: int = 10) -> dict[str, Any]:
    """A run of a tuner, validity hidden from it, until it is within 1 % of the pool's best, and its row."""
    domain = pool.domain
    work = Run(
        domain.space,
        lambda: make_tuner(tuner, domain, seed),
        pool.device,
        tuner,
        seed,
        Limits(batch=batch),
    )
    with work:
        while not work.exhausted and trials_to(work.history.outcomes, 1.01 * pool.best) is None:
            work.step(batch)
        done = work.history.outcomes
    reached, near = trials_to(done, 1.01 * pool.best), trials_to(done, 1.02 * pool.best)
    return {
        "task": pool.name,
        "tuner": tuner,
        "seed": seed,
        "trials": len(done),
        "to_1": reached,
        "to_2": near,
        "invalid_to_2": int((~done.valid[: near or len(done)]).sum()),
    }


def judge(given: Pool, judged: Pool, seed: int = 0) -> dict[str, Any]:
    """`finetune` on measurements of one layer; Kendall tau of the predictions of another one before and after."""
    network = picking.predictor_of(None, given.domain.space.kind, given.chip.design)
    board = calibrate.Board([given.domain.space, judged.domain.space], network)
    own = calibrate.Board([given.domain.space], network)
    measured = finetune.collect(own, given.device, BUDGET, seed)
    found = finetune.adapt(own, measured, {})
    timed = np.flatnonzero(judged.table.cycles > 0)
    rows = [(1, int(judged.domain.indices[i]), 0, int(judged.table.cycles[i]), 1) for i in timed]
    asked = calibrate.Measured.of(rows)
    plain = calibrate.Calibration.none(board.described)
    taus = {
        name: finite(kendall_tau(board.expected(known, asked), judged.table.cycles[timed]))
        for name, known in (("before", plain), ("after", found.calibration))
    }
    way = found.network.card["finetuned"]["method"]
    return {
        "task": f"{given.name} -> {judged.name}",
        "tuner": "finetune",
        "seed": seed,
        "measured": len(measured),
        "method": way,
        "kept": found.better,
        **taus,
    }


def make_rows(found: Sequence[Pool], tuners: Sequence[str], seeds: int, done: set[Any]) -> Iterator[dict[str, Any]]:
    """The rows that are not ``done``, (task, tuner, seed) each, as they are made: what takes least first."""
    for pool in found:
        if (pool.name, "network", 0) not in done:
            yield choose(pool)
    for given in found:
        for judged in found:
            same = given.device is judged.device and given is not judged
            if same and (f"{given.name} -> {judged.name}", "finetune", 0) not in done:
                yield judge(given, judged)
    for seed in range(seeds):
        for pool in found:
            for tuner in tuners:
                if (pool.name, tuner, seed) not in done:
                    yield run_one(pool, tuner, seed)


# The report --------------------------------------------------------------------------------------
def _median(values: list[float]) -> str:
    low, middle, high = np.percentile(np.array(values, dtype=float), [25, 50, 75])
    return f"{middle:g} ({low:g}-{high:g})"


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    chosen = [row for row in rows if row["tuner"] == "network"]
    parts = [
        "# Tuners on what real boards did",
        "Written by `python benchmarks/tuning_study.py --logs FILE...`. A layer is a pool of all that the board tried; "
        "a trial without a time is invalid, whatever it ended with; validity is hidden from the tuners.",
        "## Without measurements",
        "| layer | tried | with a time | chosen: ended | regret | without the closed form |\n"
        "|---|---|---|---|---|---|\n"
        + "\n".join(
            f"| {row['task']} | {row['tried']} | {row['timed']} | {row['outcome']} | {_percent(row['regret'])} | "
            f"{row['outcome_alone']} |"
            for row in chosen
        ),
    ]
    regrets = [row["regret"] for row in chosen if row["regret"] is not None]
    if regrets:
        parts.append(
            f"Mean regret {np.mean(regrets):.2%}, worst {max(regrets):.2%}, {len(regrets)} of {len(chosen)} ran."
        )
    runs = [row for row in rows if "to_1" in row]
    tuners = [tuner for tuner in TUNERS if any(row["tuner"] == tuner for row in runs)]
    tasks = list(dict.fromkeys(row["task"] for row in runs))
    if runs:
        seeds = len({row["seed"] for row in runs})
        parts += [
            "## Trials",
            f"Until within 1 % of the pool's best, and within 2 %, median (quartiles) over {seeds} seeds; then invalid "
            "ones among the latter. A run that did not get there counts as one trial more than it made.",
            _trials(runs, tasks, tuners),
        ]
    tuned = [row for row in rows if row["tuner"] == "finetune"]
    if tuned:
        parts += [
            f"## `finetune` on one layer, judged on another of the same file (up to {BUDGET} measurements)",
            "| layers | measured | by | tau before | after |\n|---|---|---|---|---|\n"
            + "\n".join(
                f"| {row['task']} | {row['measured']} | {row['method']} | {row['before']:.3f} | {row['after']:.3f} |"
                for row in tuned
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _trials(runs: Sequence[dict[str, Any]], tasks: Sequence[str], tuners: Sequence[str]) -> str:
    lines = ["| layer | " + " | ".join(tuners) + " |", "|---|" + "---|" * len(tuners)]
    medians: dict[tuple[str, str], tuple[float, float]] = {}
    for task in tasks:
        cells = []
        for tuner in tuners:
            own = [row for row in runs if row["task"] == task and row["tuner"] == tuner]
            if not own:
                cells.append("-")
                continue
            to_1, to_2 = ([float(row[key] or row["trials"] + 1) for row in own] for key in ("to_1", "to_2"))
            invalid = [float(row["invalid_to_2"]) for row in own]
            medians[task, tuner] = float(np.median(to_2)), float(np.median(invalid))
            cells.append(f"{_median(to_1)}; {_median(to_2)}, {np.median(invalid):g}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    lines += against_baseline(
        tasks, tuners, medians, (f"trials to 2 % against {BASELINE}", f"invalid ones against {BASELINE}")
    )
    return "\n".join(lines)


def against_baseline(
    tasks: Sequence[str], tuners: Sequence[str], medians: Mapping[tuple[str, str], tuple[float, float]],
    heads: tuple[str, str],
) -> list[str]:  # fmt: skip
    """Two lines of a table: each tuner's trials and invalid ones against those of `BASELINE`, on what both have done.

    Args:
        medians: (task, tuner) -> trials, and invalid ones among them.
        heads: of the two lines.
    """
    ratios, avoided = [], []
    for tuner in tuners:
        both = [task for task in tasks if (task, tuner) in medians and (task, BASELINE) in medians]
        if not both:
            ratios.append("-")
            avoided.append("-")
            continue
        ratio = geometric_mean([medians[task, tuner][0] / medians[task, BASELINE][0] for task in both])
        ours, theirs = (sum(medians[task, name][1] for task in both) for name in (tuner, BASELINE))
        ratios.append(f"{ratio:.1%}")
        avoided.append(f"{ours / theirs - 1:+.1%}" if theirs else "-")
    return [f"| {head} | " + " | ".join(cells) + " |" for head, cells in zip(heads, (ratios, avoided), strict=True)]


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    if row["tuner"] == "network":
        return f"{row['task']}: {row['outcome']}, regret {_percent(row['regret'])} (alone: {row['outcome_alone']})"
    if row["tuner"] == "finetune":
        return (
            f"{row['task']}: {row['measured']} measured, tau {row['before']:.3f} -> {row['after']:.3f}, {row['method']}"
        )
    to = f"{row['to_1']} trials to 1 %, {row['to_2']} to 2 %, {row['invalid_to_2']} invalid"
    return f"{row['task']}, {row['tuner']}, seed {row['seed']}: {to}"
