"""How many trials tuners need: ML2Tuner and Rieber's initialization against an AutoTVM-like baseline and random search.

Run: ``python benchmarks/tuning_study.py [--part autotvm full models report ...]``. Every run of a tuner is a row of
``benchmarks/results/tuning.jsonl``; rows that are there are not made again, so the command goes on where it ended.
Cycles come from whole tables of the spaces (made once, in ``--cache``), so that T* is exact and a run costs the
tuner's own time. The last part, ``report``, writes ``benchmarks/results/tuning.md`` and its plots.

Two more parts have rows and a report of their own, and are made only where they are asked for: ``--logs FILE...``, what
real boards did (`tuning_logs`), and ``--part boards``, simulated boards (`tuning_boards`).
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import resnet18_layers
import tuning_boards
import tuning_logs

from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.common.tables import finite
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import ml2, trees
from oneshot_ml2.tuning.base import Domain, Outcomes
from oneshot_ml2.tuning.log import trials_to
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

RESULTS = Path(__file__).parent / "results"
LAYERS = {name: layer for name, layer in resnet18_layers.LAYERS.items() if name != "C2p"}
FULL_LAYERS = ("C2", "C4", "C10")
FULL_DEVICES = ("sim", "perturbed:paged:1", "perturbed:faulty:1")
BASELINE = tuning_logs.BASELINE
# Tuner -> whether validity is hidden from it; one that has the exact check before a trial is a row of its own.
AUTOTVM_TUNERS = (
    "random", BASELINE, "rieber+autotvm", "validity+autotvm", "ml2-scratch", "ml2-scratch checked", "ml2-warm",
    "ml2-frozen", "ml2-warm checked",
)  # fmt: skip
FULL_TUNERS = (
    "random", BASELINE, "rieber+autotvm", "validity+autotvm", "ml2-scratch", "ml2-warm", "ml2-frozen",
    "ml2-warm checked",
)  # fmt: skip
MOST = {"autotvm": 600, "full": 1000}
# AutoTVM's runs had batches of 8; those of the baseline that are held against them, too.
FIDELITY_BATCH = 8
# Trials that every run makes at least, and where the best so far is noted.
LEAST = 100
# Within so many trials the baseline's own best is what its tuning time is taken to.
TIMED_TRIALS = 600
TIMED_SPACES = ("autotvm", "full")
MARKS = (1, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Task:
    """A layer on ``pynq``, in a space, on a device."""

    layer: str
    kind: str
    device: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.device} {self.layer}"

    @cached_property
    def domain(self) -> Domain:
        return Domain.of(ScheduleSpace(LAYERS[self.layer], Accelerator.load("pynq"), self.kind))

    def table(self, cache: Path) -> BatchResult:
        """Reason and noise-free cycles of every schedule of the domain; from the cache, or made and put there."""
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / f"{self.name.replace(' ', '_').replace(':', '-')}.npz"
        if path.exists():
            with np.load(path) as data:
                return BatchResult(data["reason"], data["cycles"], np.zeros((0, 3), np.int64))
        space, indices = self.domain.space, self.domain.indices
        parts = []
        began = time.perf_counter()
        for begin in range(0, len(indices), 2048):
            some = indices[begin : begin + 2048]
            if self.device == "sim":
                parts.append(space.measure(some))
            else:
                _, kind, seed = self.device.split(":")
                parts.append(PerturbedDevice(kind, int(seed)).true_cycles(space, some))
        reason, cycles = (np.concatenate([getattr(part, key) for part in parts]) for key in ("reason", "cycles"))
        np.savez_compressed(path.with_suffix(".part.npz"), reason=reason, cycles=cycles)
        path.with_suffix(".part.npz").rename(path)
        print(f"table of {self.name}: {len(indices)} schedules in {time.perf_counter() - began:.0f} s", flush=True)
        return BatchResult(reason, cycles, np.zeros((0, 3), np.int64))


class TableDevice:
    """Answers from a table; on a perturbed device with its noise, seeded by run and schedule."""

    def __init__(self, task: Task, table: BatchResult, seed: int) -> None:
        self.name = task.device
        self._domain, self._table, self._seed = task.domain, table, seed
        self._noise = 0.0
        if task.device != "sim":
            _, kind, number = task.device.split(":")
            self._noise = PerturbedDevice(kind, int(number)).differences.noise

    def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
        """See `Device.measure_schedules`."""
        places = self._domain.positions(indices)
        reason, cycles = self._table.reason[places], self._table.cycles[places].copy()
        if self._noise:
            normal = [np.random.default_rng([self._seed, int(index)]).standard_normal() for index in indices]
            cycles = np.where(cycles > 0, np.rint(cycles * np.exp(self._noise * np.array(normal))), -1).astype(np.int64)
        return BatchResult(reason, cycles, np.zeros((len(indices), 3), np.int64))

    def measure(self, programs: object) -> list[object]:
        """Programs are not in the table."""
        raise NotImplementedError


def run_one(task: Task, table: BatchResult, tuner: str, seed: int, batch: int, whole: bool = False) -> dict[str, Any]:
    """A run of a tuner until it is within 1 % of T* (by noise-free cycles), or its ``whole`` length, and its row."""
    name, _, checked = tuner.partition(" ")
    began = time.perf_counter()
    best = int(table.cycles[table.cycles > 0].min())
    domain = task.domain
    device = TableDevice(task, table, seed)
    work = Run(
        domain.space,
        lambda: make_tuner(name, domain, seed),
        device,
        name,
        seed,
        Limits(batch=batch, checked=bool(checked)),
    )
    most = min(MOST[task.kind], len(domain))
    true = Outcomes.none()
    with work:
        while len(true) < most and not work.exhausted:
            if not whole and len(true) >= LEAST and trials_to(true, 1.01 * best):
                break
            work.step(most - len(true))
            places = domain.positions(work.history.outcomes.indices)
            true = Outcomes(domain.indices[places], table.reason[places], table.cycles[places])
    reached = trials_to(true, 1.01 * best)
    until = true.take(slice(0, reached or len(true)))
    curve = np.minimum.accumulate(np.where(true.valid, true.cycles, np.inf))
    return {
        "task": task.name,
        "tuner": tuner,
        "seed": seed,
        "batch": batch,
        "size": len(domain),
        "optimum": best,
        "trials": len(true),
        "to_1": reached,
        "to_2": trials_to(true, 1.02 * best),
        "invalid_to_1": int((~until.valid).sum()),
        "invalid": int((~true.valid).sum()),
        "best": {mark: finite(best / curve[mark - 1]) for mark in MARKS if len(curve) >= mark},
        "seconds": round(time.perf_counter() - began, 2),
    }


def compare_models(task: Task, table: BatchResult, seed: int, training: int = 100) -> dict[str, Any]:
    """RMSE of log cycles of P (visible features) and A (with hidden ones), same training sample, held-out points."""
    from oneshot_ml2.vta import facts

    rng = np.random.default_rng([seed, 7])
    valid = np.flatnonzero(table.reason == Reason.VALID)
    chosen = rng.choice(valid, size=min(training + 400, len(valid)), replace=False)
    cut = min(training, len(chosen) // 2)
    rows = []
    for place in chosen.tolist():
        try:
            rows.append(facts.features(task.domain.space.lower(int(task.domain.indices[place]))))
        except InvalidSchedule as error:
            raise AssertionError("a valid schedule lowers") from error
    visible = trees.visible_features(task.domain, chosen)
    both = np.concatenate([np.array(rows, dtype=np.float32), visible], axis=1)
    labels = np.log(table.cycles[chosen].astype(np.float64))
    own = np.array(rows)
    p = ml2.fit_performance(visible[:cut], labels[:cut])
    a, costs = ml2.fit_with_costs(both[:cut], own[:cut], labels[:cut])
    predicted = {"P": p.predict(visible[cut:]), "A": a.predict(both[cut:], costs.log_cycles(own[cut:]))}
    rmse = {model: float(np.sqrt(np.mean((values - labels[cut:]) ** 2))) for model, values in predicted.items()}
    return {"task": task.name, "models": True, "seed": seed, "training": cut, "held_out": len(chosen) - cut, **rmse}


def compare_times(kind: str, seed: int) -> dict[str, Any]:
    """Wall time of the baseline to its own best in 600 trials, layer by layer on the simulator itself, and of our
    zero-measurement picks and programs of the same layers, in this process."""
    chip, device = Accelerator.load("pynq"), open_device("sim")
    layers = list(LAYERS.values())
    network = picking.predictor_of(None)
    # Compiled code is loaded, and both have run once, before anything is timed.
    picking.pick(layers[-1], chip, network)
    space = ScheduleSpace(layers[-1], chip, kind)
    warm = Run(space, lambda: make_tuner(BASELINE, Domain.of(space), seed), device, BASELINE, seed, Limits(batch=80))
    with warm:
        warm.step(80)
        warm.step(8)
    compiling = []
    for _ in range(3):
        began = time.perf_counter()
        picking.pick_all(layers, chip, network)
        compiling.append(time.perf_counter() - began)
    seconds, trials, made = 0.0, 0, 0
    for layer in layers:
        began = time.perf_counter()
        space = ScheduleSpace(layer, chip, kind)
        domain = Domain.of(space)
        limits = Limits(batch=FIDELITY_BATCH)
        work = Run(space, functools.partial(make_tuner, BASELINE, domain, seed), device, BASELINE, seed, limits)
        passed: list[float] = []
        with work:
            while len(passed) < TIMED_TRIALS and not work.exhausted:
                passed += [0.0] * work.step(TIMED_TRIALS - len(passed))
                now = time.perf_counter() - began
                passed = [value or now for value in passed]
            history = work.history
        assert history.best is not None
        first = history.trials_to(history.best[1])
        assert first is not None
        seconds, trials, made = seconds + passed[first - 1], trials + first, made + len(passed)
    compiled = float(np.median(compiling))
    return {
        "task": f"time {kind}",
        "tuner": BASELINE,
        "seed": seed,
        "batch": FIDELITY_BATCH,
        "layers": len(layers),
        "tuning_seconds": round(seconds, 2),
        "trials_to_best": trials,
        "trials": made,
        "compile_seconds": round(compiled, 4),
        "ratio": round(seconds / compiled, 1),
    }


# What is run -----------------------------------------------------------------------------------
def plan(parts: list[str], seeds: int, fidelity_seeds: int) -> Iterator[tuple[Task, str, int, int]]:
    """(task, tuner or "models", seed, batch) of the parts."""
    for layer in LAYERS:
        task = Task(layer, "autotvm", "sim")
        if "fidelity" in parts:
            yield from ((task, BASELINE, seed, FIDELITY_BATCH) for seed in range(fidelity_seeds))
        if "autotvm" in parts:
            yield from ((task, tuner, seed, 10) for tuner in AUTOTVM_TUNERS for seed in range(seeds))
        if "models" in parts:
            yield from ((task, "models", seed, 0) for seed in range(seeds))
    for device in FULL_DEVICES:
        for layer in FULL_LAYERS:
            task = Task(layer, "full", device)
            if "full" in parts:
                yield from ((task, tuner, seed, 10) for tuner in FULL_TUNERS for seed in range(seeds))
            if "models" in parts and device == "sim":
                yield from ((task, "models", seed, 0) for seed in range(seeds))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same run."""
    return (row["task"], "models" if "models" in row else row["tuner"], row["seed"], row.get("batch", 0))


def read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the results file; raises KeyError or TypeError for what is none."""
    key(row)
    return row


# The report ------------------------------------------------------------------------------------
def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(np.array(values, dtype=float), [25, 50, 75])
    return float(low), float(middle), float(high)


def _shown(value: float, most: int) -> str:
    return f"> {most}" if value > most else f"{value:g}"


def trials_table(rows: list[dict[str, Any]], kind: str, device: str, tuners: tuple[str, ...]) -> str:
    """Median (quartiles) of trials to within 1 % of T*, and invalid ones among them; ratios to the baseline's."""
    chosen = [row for row in rows if row["task"].startswith(f"{kind} {device} ") and row.get("batch") == 10]
    layers = [layer for layer in LAYERS if any(row["task"].endswith(f" {layer}") for row in chosen)]
    most = MOST[kind]
    medians: dict[tuple[str, str], tuple[float, float]] = {}
    lines = ["| layer | " + " | ".join(tuners) + " |", "|---|" + "---|" * len(tuners)]
    for layer in layers:
        cells = []
        for tuner in tuners:
            runs = [row for row in chosen if row["task"].endswith(f" {layer}") and row["tuner"] == tuner]
            if not runs:
                cells.append("-")
                continue
            # A run that never got there counts as one trial more than there were.
            trials = [float(row["to_1"] or most + 1) for row in runs]
            invalid = [float(row["invalid_to_1"]) for row in runs]
            low, middle, high = _quartiles(trials)
            medians[layer, tuner] = middle, float(np.median(invalid))
            shown = f"{_shown(middle, most)} ({_shown(low, most)}-{_shown(high, most)})"
            cells.append(f"{shown}, {np.median(invalid):g}")
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    heads = (f"trials against {BASELINE}", f"invalid trials against {BASELINE}")
    lines += tuning_logs.against_baseline(layers, tuners, medians, heads)
    return "\n".join(lines)


def spread_table(rows: list[dict[str, Any]], kind: str, device: str, tuners: tuple[str, ...]) -> str:
    """T* over the best after 100 trials: median and interquartile range; then the ranges against the baseline's."""
    chosen = [row for row in rows if row["task"].startswith(f"{kind} {device} ") and row.get("batch") == 10]
    layers = [layer for layer in LAYERS if any(row["task"].endswith(f" {layer}") for row in chosen)]
    ranges: dict[tuple[str, str], float] = {}
    lines = ["| layer | " + " | ".join(tuners) + " |", "|---|" + "---|" * len(tuners)]
    for layer in layers:
        cells = []
        for tuner in tuners:
            runs = [row for row in chosen if row["task"].endswith(f" {layer}") and row["tuner"] == tuner]
            # A run that had tried all that is valid ended earlier.
            values = [float(row["best"].get("100", max(row["best"].values())) or 0.0) for row in runs]
            if not values:
                cells.append("-")
                continue
            low, middle, high = _quartiles(values)
            ranges[layer, tuner] = high - low
            cells.append(f"{middle:.1%} (range {high - low:.1%})")
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    against = []
    for tuner in tuners:
        # Of layers where the baseline's runs differ; a range of 0 counts as a hundredth of a percent.
        both = [
            max(ranges[layer, tuner], 1e-4) / ranges[layer, BASELINE]
            for layer in layers
            if (layer, tuner) in ranges and ranges.get((layer, BASELINE), 0.0) > 1e-4
        ]
        against.append(f"{geometric_mean(both):.1%}" if both else "-")
    lines.append(f"| range against {BASELINE} | " + " | ".join(against) + " |")
    return "\n".join(lines)


def models_table(rows: list[dict[str, Any]]) -> str:
    """RMSE of A over that of P, median over seeds, by task."""
    chosen = [row for row in rows if "models" in row]
    lines = ["| space | layer | training | P | A | A / P (quartiles) |", "|---|---|---|---|---|---|"]
    ratios = []
    for task in dict.fromkeys(row["task"] for row in chosen):
        runs = [row for row in chosen if row["task"] == task]
        low, middle, high = _quartiles([row["A"] / row["P"] for row in runs])
        ratios.append(middle)
        kind, device, layer = task.split(" ")
        p, a = (float(np.median([row[model] for row in runs])) for model in ("P", "A"))
        where = kind if device == "sim" else f"{kind}, {device}"
        training = runs[0]["training"]
        lines.append(f"| {where} | {layer} | {training} | {p:.3f} | {a:.3f} | {middle:.3f} ({low:.3f}-{high:.3f}) |")
    if ratios:
        lines.append(f"| all | | | | | geometric mean {geometric_mean(ratios):.3f} |")
    return "\n".join(lines)


def fidelity_table(rows: list[dict[str, Any]], reference: Path) -> str:
    """The baseline beside runs of the real AutoTVM on the same tables: trials to within 2 %, share of invalid ones."""
    real = json.loads(reference.read_text(encoding="utf-8"))["layers"]
    lines = [
        "| layer | schedules | ours: median (quartiles) | AutoTVM: the same | ratio | invalid: ours | AutoTVM |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for layer in LAYERS:
        runs = [row for row in rows if row["task"] == f"autotvm sim {layer}" and row.get("batch") == FIDELITY_BATCH]
        if not runs or layer not in real:
            continue
        theirs = real[layer]["xgb_knob"]
        most = MOST["autotvm"]
        ours_trials = _quartiles([float(row["to_2"] or most + 1) for row in runs])
        their_trials = _quartiles([float(row["trials_to_within_2pct"] or most + 1) for row in theirs])
        ratio = ours_trials[1] / their_trials[1]
        ratios.append(ratio)
        share = np.mean([row["invalid"] / row["trials"] for row in runs])
        their_share = np.mean([row["invalid_share"] for row in theirs])
        lines.append(
            f"| {layer} | {runs[0]['size']} | {ours_trials[1]:g} ({ours_trials[0]:g}-{ours_trials[2]:g}) | "
            f"{their_trials[1]:g} ({their_trials[0]:g}-{their_trials[2]:g}) | {ratio:.2f} | {share:.1%} | "
            f"{their_share:.1%} |"
        )
    if ratios:
        lines.append(f"| geometric mean | | | | {geometric_mean(ratios):.2f} | | |")
    return "\n".join(lines)


def times_table(rows: list[dict[str, Any]]) -> str:
    """Tuning time over compile time: median and quartiles."""
    lines = [
        "| space | runs | tuning, s | trials to its best | compile, s | measurements | times |",
        "|---|" + "---|" * 6,
    ]
    for kind in TIMED_SPACES:
        runs = [row for row in rows if row["task"] == f"time {kind}"]
        if not runs:
            continue
        tuning, trials, compiling, times = (
            _quartiles([row[name] for row in runs])
            for name in ("tuning_seconds", "trials_to_best", "compile_seconds", "ratio")
        )
        lines.append(
            f"| {kind} | {len(runs)} | {tuning[1]:.1f} ({tuning[0]:.1f}-{tuning[2]:.1f}) | {trials[1]:g} | "
            f"{compiling[1]:.2f} | 0 | {times[1]:.1f} ({times[0]:.1f}-{times[2]:.1f}) |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], kind: str, device: str, tuners: tuple[str, ...], path: Path) -> None:
    """T* over the best so far, median over seeds and layers with quartiles, by trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for tuner in tuners:
        runs = [row for row in rows if row["task"].startswith(f"{kind} {device} ") and row.get("tuner") == tuner]
        runs = [row for row in runs if row["batch"] == 10]
        if not runs:
            continue
        marks = [mark for mark in MARKS if mark <= LEAST]
        values = np.array([[row["best"].get(str(mark)) or 0.0 for mark in marks] for row in runs])
        low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
        axes.plot(marks, middle, marker="o", label=tuner)
        axes.fill_between(marks, low, high, alpha=0.15)
    axes.set_xscale("log")
    axes.set_xlabel("trials, invalid ones included")
    axes.set_ylabel("T* / best so far")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title=f"{kind}, {device}")
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def write_report(rows: list[dict[str, Any]], reference: Path | None) -> None:
    """``results/tuning.md`` and its plots."""
    parts = [
        "# Trials that tuners need",
        "Written by `python benchmarks/tuning_study.py`. Trials until within 1 % of T*: median (quartiles) over seeds, "
        "then the median number of invalid ones among them. A run that did not get there counts as one trial more "
        "than it made. `checked`: with the exact check before a trial; for all others validity is hidden. "
        "`rieber+` and `validity+`: their 1,000 lowerings are no trials.",
    ]
    groups = [("autotvm", "sim", AUTOTVM_TUNERS)] + [("full", device, FULL_TUNERS) for device in FULL_DEVICES]
    for kind, device, tuners in groups:
        if not any(row["task"].startswith(f"{kind} {device} ") and row.get("batch") == 10 for row in rows):
            continue
        picture = f"tuning_{kind}_{device.replace(':', '-')}.png"
        plot(rows, kind, device, tuners, RESULTS / picture)
        parts += [f"## Space `{kind}`, device `{device}`", trials_table(rows, kind, device, tuners)]
        parts += ["T* / best after 100 trials:", spread_table(rows, kind, device, tuners), f"![]({picture})"]
    if any("models" in row for row in rows):
        parts += [
            "## A against P",
            "RMSE of the logarithm of cycles on held-out valid schedules, of the models that `ml2-scratch` fits to the "
            "same training sample: P is trees on what can be seen of a schedule, A the costs of what its program "
            "counts (least squares, none below 0), corrected by trees that see the hidden features, too.",
            models_table(rows),
        ]
    if any(row["task"].startswith("time ") for row in rows):
        parts += [
            "## Tuning time against compile time",
            f"ResNet-18's ten distinct layers on the simulator, each measurement lowered and timed anew, batches of "
            f"{FIDELITY_BATCH}: wall time of the AutoTVM-like tuner to its own best within {TIMED_TRIALS} trials a "
            "layer, over that of the zero-measurement picks and programs of the same layers in the same process.",
            times_table(rows),
        ]
    if reference is not None:
        parts += [
            "## The baseline against the real AutoTVM",
            "Trials to within 2 % of the optimum, batches of 8, up to 600 trials, and the share of invalid ones, "
            "beside runs of TVM's own tuner on the same tables (5 seeds a layer).",
            fidelity_table(rows, reference),
        ]
    (RESULTS / "tuning.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    everything = ["fidelity", "autotvm", "full", "models", "time", "report"]
    parser.add_argument("--part", nargs="+", choices=[*everything, "boards"], default=everything)
    parser.add_argument("--logs", nargs="+", type=Path, metavar="FILE", help="boards' files, in place of the parts")
    parser.add_argument("--accelerator", metavar="NAME", help="of --logs, in place of each board's own")
    boards = [f"{kind}:{seed}" for kind in tuning_boards.KINDS for seed in range(2)]
    parser.add_argument("--most", type=int, default=400, help="trials of a run of the part boards")
    parser.add_argument("--boards", nargs="+", default=boards, metavar="KIND:SEED", help="of the part boards")
    parser.add_argument("--layers", nargs="+", default=list(tuning_boards.LAYERS), choices=tuning_boards.LAYERS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fidelity-seeds", type=int, default=20)
    tuners = list(dict.fromkeys(AUTOTVM_TUNERS + FULL_TUNERS + tuning_logs.TUNERS + tuning_boards.TUNERS))
    parser.add_argument("--tuners", nargs="+", choices=tuners, default=tuners, help="make only runs of these")
    parser.add_argument("--devices", nargs="+", choices=FULL_DEVICES, default=FULL_DEVICES, help="and on these")
    parser.add_argument("--cache", type=Path, default=RESULTS / "cache", help="tables of whole spaces")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows and reports of those two parts")
    parser.add_argument("--reference", type=Path, help="runs of the real AutoTVM (autotvm_tuner.json)")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.logs or args.part == ["boards"]:
        return extend(args)
    path = RESULTS / "tuning.jsonl"
    with open_lines(path, read_row) as results:
        rows = results.entries
        done = {key(row) for row in rows}
        for row in make_rows(args, done):
            results.append([row])
            rows.append(row)
            print(told(row), flush=True)
        if "report" in args.part:
            write_report(rows, args.reference)


def extend(args: argparse.Namespace) -> None:
    """The part of the logs, or of the boards: its rows and its report."""
    name, part = ("tuning_logs", tuning_logs) if args.logs else ("tuning_boards", tuning_boards)
    with open_lines(args.out / f"{name}.jsonl", read_row) as results:
        # A run of fewer trials than are asked for now is made again, and then counts no more.
        known = {(row["task"], row["tuner"], row["seed"]): row for row in results.entries}
        done = {key for key, row in known.items() if args.logs or row.get("trials", args.most) >= args.most}
        tuners = [tuner for tuner in part.TUNERS if tuner in args.tuners]
        if args.logs:
            chip = Accelerator.load(args.accelerator) if args.accelerator else None
            new = tuning_logs.make_rows(tuning_logs.pools(args.logs, chip), tuners, args.seeds, done)
        else:
            new = tuning_boards.make_rows(args.boards, args.layers, tuners, args.seeds, args.most, done)
        for row in new:
            results.append([row])
            known[row["task"], row["tuner"], row["seed"]] = row
            print(part.told(row), flush=True)
        (args.out / f"{name}.md").write_text(part.report(list(known.values())), encoding="utf-8")


def make_rows(args: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The rows that are asked for and not ``done``, as they are made."""
    tables: dict[Task, BatchResult] = {}
    for task, tuner, seed, batch in plan(args.part, args.seeds, args.fidelity_seeds):
        if (task.name, tuner, seed, batch) in done or task.device not in args.devices:
            continue
        if tuner != "models" and tuner not in args.tuners:
            continue
        if task not in tables:
            # One task at a time: a whole space's table and maps are large.
            tables = {task: task.table(args.cache)}
        if tuner == "models":
            yield compare_models(task, tables[task], seed)
        else:
            yield run_one(task, tables[task], tuner, seed, batch, whole=batch == FIDELITY_BATCH)
    for kind in TIMED_SPACES if "time" in args.part else ():
        for seed in range(args.seeds):
            if (f"time {kind}", BASELINE, seed, FIDELITY_BATCH) not in done:
                yield compare_times(kind, seed)


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    if "models" in row:
        return f"{row['task']}, models, seed {row['seed']}: P {row['P']:.4f}, A {row['A']:.4f}"
    if "to_1" not in row:
        return f"{row['task']}, seed {row['seed']}: {row['tuning_seconds']} s / {row['compile_seconds']} s"
    trials = f"{row['to_1']} trials, {row['invalid_to_1']} invalid, {row['seconds']} s"
    return f"{row['task']}, {row['tuner']}, seed {row['seed']}: {trials}"


if __name__ == "__main__":
    main()
