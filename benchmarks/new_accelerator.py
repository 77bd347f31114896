"""How good picks are on a new accelerator before and after a few measurements: `oneshot-ml2 finetune` and other ways.

Run: ``python benchmarks/new_accelerator.py [--seeds N] [--kinds KIND ...]``. A new accelerator is a perturbed device of
one of `KINDS` and a seed, described as ``pynq``. Each is a row of ``benchmarks/results/new_accelerator.jsonl``; rows
that are there are not made again, so the command goes on where it ended. The report, ``new_accelerator.md``, and its
plot are made of all rows.

The weights are adapted on 20 training workloads and pick for 20 others, none of which they were trained on. T* is the
least noise-free time on the device of all schedules that were looked at: the best 200 by the networks when told the
board's true latency, up to 500 in the order of a proven bound on that board, the best 300 by the weights adapted with
the largest budget, and all picks. Where the bound reaches the best it is exact; the report says how often.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import resources
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.devices.boards import KINDS, board_of
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.evaluation import baselines
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import NETWORKS, Predictor, depth
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full.totals import column
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import calibrate, finetune, trees
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.lists import read_layers

RESULTS = Path(__file__).parent / "results"
BUDGETS = (64, 256, 1024)
BARS = {0: 0.90, 64: 0.96, 256: 0.98, 1024: 0.99}
# Up to so many multiplications, so that a program is timed in a millisecond or two.
_MACS = 3e7
# Schedules timed for T*: so many by the networks, in the order of the bound, and by the adapted weights.
_FIRST, _SEARCHED, _LAST = 200, 500, 300
# How many of a ranking a failed pick's successor is looked for in, and those from scratch choose from.
_SUCCESSORS, _POOL = 512, 8192
# Devices of seeds below this also get the other ways of adapting.
_WAYS_SEEDS = 1
WAYS = ("last layer", "full")


def spread(names: tuple[str, str], counts: tuple[int, int], chip: Accelerator) -> list[Workload]:
    """Workloads of moderate size, evenly through two shipped lists: convolutions and dense layers, other operators."""
    chosen: list[Workload] = []
    for name, count in zip(names, counts):
        fitting = [
            layer.workload
            for layer in read_layers(resources.find("workloads", name))
            if getattr(layer.workload, "real_macs", 0) <= _MACS and len(ScheduleSpace(layer.workload, chip)) > 20_000
        ]
        chosen += [fitting[i] for i in np.linspace(0, len(fitting) - 1, count).round().astype(int)]
    return chosen


def lower_bound(space: ScheduleSpace, device: PerturbedDevice, given: full_features.Candidates) -> NDArray[np.float64]:
    """Cycles that schedules take at least on the device, float64 (n,): its rule, with what is certain of T, R and E."""
    d = device.differences
    board = ScheduleSpace(space.workload, board_of(space.accelerator, d))
    summary = full_features.Encoder.of(board).candidates(given.indices, given.values).summary
    port = column(summary, "inp_beats") + column(summary, "wgt_beats")
    bound, more = column(summary, "bound"), port * (1.0 / d.bandwidth - 1.0)
    return np.asarray(bound + more * (port + more) / (bound + more))


class Held:
    """A held-out workload on a device: noise-free times of what is asked for, each made once."""

    def __init__(self, workload: Workload, chip: Accelerator, device: PerturbedDevice) -> None:
        self.space, self.device = ScheduleSpace(workload, chip), device
        self._times: dict[int, int] = {}

    def times(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cycles (n,), -1 where invalid."""
        new = np.array([i for i in dict.fromkeys(indices.tolist()) if i not in self._times], dtype=np.int64)
        if len(new):
            self._times.update(zip(new.tolist(), self.device.true_cycles(self.space, new).cycles.tolist()))
        return np.array([self._times[i] for i in indices.tolist()], dtype=np.int64)

    @property
    def best(self) -> float:
        """The least so far; infinite without a valid one."""
        return min((cycles for cycles in self._times.values() if cycles > 0), default=float("inf"))

    def search(self, network: Predictor) -> bool:
        """Look for T*; whether the bound proves it."""
        board = ScheduleSpace(self.space.workload, board_of(self.space.accelerator, self.device.differences))
        self.times(picking.rank(board, network).best(_FIRST))
        given = full_features.all_candidates(self.space, fitting=True)
        bound = lower_bound(self.space, self.device, given)
        order = np.argsort(bound, kind="stable")
        for at in range(0, min(_SEARCHED, len(order)), 250):
            if bound[order[at]] >= self.best:
                return True
            self.times(given.indices[order[at : at + 250]])
        return len(order) <= _SEARCHED or bool(bound[order[_SEARCHED]] >= self.best)

    def picked(self, order: NDArray[np.int64]) -> tuple[int, bool]:
        """Cycles of the first valid one of a ranking (m,) among the legal ones, or 0; whether it is the pick."""
        legal = order[picking.legal_positions(self.space, order, _SUCCESSORS)]
        for begin, end in ((0, 1), (1, 32), (32, _SUCCESSORS)):
            cycles = self.times(legal[begin:end])
            valid = np.flatnonzero(cycles > 0)
            if len(valid):
                return int(cycles[valid[0]]), begin == 0
        return 0, False


def ranking(space: ScheduleSpace, network: Predictor) -> NDArray[np.int64]:
    """Schedules in the order in which the network picks, those of least bounds behind what it trusts."""
    first = picking.rank(space, network)
    return np.concatenate([first.best(len(first.indices)), picking.promising(space).indices[:_SUCCESSORS]])


# From scratch ----------------------------------------------------------------------------------
class Scratch:
    """Trees that learn from the same measurements alone, on the network's features: log(T / LB), and validity."""

    def __init__(self, board: calibrate.Board, measured: calibrate.Measured, seed: int) -> None:
        usable = measured.take(measured.valid | measured.failed)
        rows, ratios = np.empty((len(usable), len(full_features.FEATURES)), np.float32), np.zeros(len(usable))
        for task in np.unique(usable.task).tolist():
            own = np.flatnonzero(usable.task == task)
            features, bound = features_of(board.spaces[task], usable.index[own])
            rows[own] = features
            ratios[own] = np.log(np.maximum(usable.cycles[own], 1) / bound)
        valid = usable.valid
        self._cycles = trees.fit(rows[valid], ratios[valid], "reg:squarederror", None, 150, seed, max_depth=5, eta=0.1)
        self._valid = None
        if not valid.all():
            self._valid = trees.fit(rows, valid.astype(float), "binary:logistic", None, 100, seed, min_child_weight=0.1)
        self._seed = seed

    def ranking(self, space: ScheduleSpace) -> NDArray[np.int64]:
        """Of what has the least bounds, in the order of the predicted cycles, those that it distrusts last."""
        rng = np.random.default_rng(self._seed)
        indices = picking.promising(space).indices
        indices = rng.choice(indices, size=min(_POOL, len(indices)), replace=False)
        features, bound = features_of(space, indices)
        cost = np.log(bound) + self._cycles.predict(features)
        if self._valid is not None:
            cost += 1e3 * (self._valid.predict(features) < 0.0)
        return np.asarray(indices[np.argsort(cost, kind="stable")])


def features_of(space: ScheduleSpace, indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """`encode.FEATURES` (n, F) and the bounds (n,) of schedules."""
    encoder, task = full_features.Encoder.of(space), full_features.task_features(space)
    given = full_features.candidates_at(space, indices)
    out = np.empty((len(indices), len(full_features.FEATURES)), dtype=np.float32)
    own = np.empty((len(indices), len(full_features.SCHEDULE_FEATURES)), dtype=np.float32)
    encoder.encode(given, own)
    out[:, : len(task)], out[:, len(task) :] = task, own
    return out, given.bound


def transplanted(board: calibrate.Board, measured: calibrate.Measured, space: ScheduleSpace) -> NDArray[np.int64]:
    """The fastest measured schedule of the nearest measured workload, moved here: a ranking of one."""
    tasks, values = [], []
    for task in np.unique(measured.task[measured.valid]).tolist():
        own = np.flatnonzero((measured.task == task) & measured.valid)
        fastest = measured.index[own[measured.cycles[own].argmin()]]
        tasks.append(full_features.task_features(board.spaces[task]))
        values.append(board.spaces[task].values(np.array([fastest]))[0])
    found = baselines.BestKnown(np.array(tasks), np.array(values, dtype=np.int64)).transplanted(space)
    rest = picking.promising(space).indices[:_SUCCESSORS]
    return np.concatenate([np.array([] if found is None else [found], dtype=np.int64), rest])


# Other ways of adapting ------------------------------------------------------------------------
def trained(board: calibrate.Board, measured: calibrate.Measured, way: str, steps: int = 300) -> Predictor:
    """The networks trained on with the losses of training, the last layers or all of them, pulled towards where they
    were: Adam at a small rate, in place of replay a penalty on the weights' way."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    torch.set_num_threads(1)
    usable = measured.take(measured.valid | measured.failed)
    rows, ratios = np.empty((len(usable), len(full_features.FEATURES)), np.float32), np.zeros(len(usable), np.float32)
    for task in np.unique(usable.task).tolist():
        own = np.flatnonzero(usable.task == task)
        rows[own], bound = features_of(board.spaces[task], usable.index[own])
        ratios[own] = np.log(np.maximum(usable.cycles[own], 1) / bound)
    old = board.network.tensors
    x0 = torch.from_numpy((rows - old["mean"]) / old["scale"])
    ratio, valid = torch.from_numpy(ratios), torch.from_numpy(usable.valid.astype(np.float32))
    tensors, rng = dict(old), np.random.default_rng(0)
    for network in NETWORKS:
        layers = depth(old, network)
        names = [f"{network}.{i}.{kind}" for i in range(layers) for kind in ("weight", "bias")]
        free = names if way == "full" else names[-2:]
        given = {name: torch.from_numpy(old[name].copy()) for name in names}
        new = {name: tensor.clone().requires_grad_(name in free) for name, tensor in given.items()}
        optimizer = torch.optim.Adam([new[name] for name in free], lr=3e-4 if way == "full" else 1e-3)
        for _ in range(steps):
            some = torch.from_numpy(rng.choice(len(usable), size=min(128, len(usable)), replace=False))
            x = x0[some]
            for i in range(layers):
                x = F.linear(x, new[f"{network}.{i}.weight"], new[f"{network}.{i}.bias"])
                x = F.relu(x) if i + 1 < layers else x
            huber = F.smooth_l1_loss(x[:, 1], ratio[some], beta=0.1, reduction="none") * valid[some]
            loss = huber.sum() / valid[some].sum().clamp(min=1.0) / 0.1
            loss = loss + 0.3 * F.binary_cross_entropy_with_logits(x[:, 0], valid[some])
            loss = loss + 0.1 * sum(((new[name] - given[name]) ** 2).sum() for name in free)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tensors |= {name: new[name].detach().numpy() for name in names}
    return replace(board.network, tensors=tensors)


# The study -------------------------------------------------------------------------------------
def run_one(kind: str, seed: int, chip: Accelerator, network: Predictor) -> dict[str, Any]:
    """A device's row: of every way and budget the cycles of each held-out workload's pick."""
    began = time.perf_counter()
    device = PerturbedDevice(kind, seed)
    held = [Held(workload, chip, device) for workload in spread(HELD, (14, 6), chip)]
    closed = [one.search(network) for one in held]
    board = calibrate.Board([ScheduleSpace(w, chip) for w in spread(ADAPTED, (14, 6), chip)], network)
    measured = finetune.collect(board, device, max(BUDGETS), seed)
    picks = {"network 0": [one.picked(ranking(one.space, network)) for one in held]}
    known: dict[str, Any] = {}
    for budget in BUDGETS:
        own = measured.take(slice(0, budget))
        found = finetune.adapt(board, own, {})
        known[str(budget)] = found.network.card["finetuned"]
        kept = found.network if found.better else network
        picks[f"network {budget}"] = [one.picked(ranking(one.space, kept)) for one in held]
        scratch = Scratch(board, own, seed)
        picks[f"scratch {budget}"] = [one.picked(scratch.ranking(one.space)) for one in held]
        picks[f"transplant {budget}"] = [one.picked(transplanted(board, own, one.space)) for one in held]
        for way in WAYS if seed < _WAYS_SEEDS else ():
            other = trained(board, own, way)
            picks[f"{way} {budget}"] = [one.picked(ranking(one.space, other)) for one in held]
    deepen(held, found.network)
    return {
        "kind": kind,
        "seed": seed,
        "best": [one.best for one in held],
        "closed": closed,
        "picks": {name: [cycles if valid else -cycles for cycles, valid in rows] for name, rows in picks.items()},
        "known": {
            n: {k: card[k] for k in ("before", "after", "memory_latency", "costs", "limits")}
            for n, card in known.items()
        },
        "failed": int((~measured.valid).sum()),
        "attempts": int(measured.attempts.sum()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def deepen(held: list[Held], network: Predictor) -> None:
    """Time the best by adapted weights, too, so that T* is no worse than what is close to their picks."""
    for one in held:
        first = picking.rank(one.space, network).best(2 * _LAST)
        one.times(first[picking.legal_positions(one.space, first, _LAST)])


HELD = ("heldout.toml", "operators_heldout.toml")
ADAPTED = ("train.toml", "operators.toml")


def qualities(row: dict[str, Any], name: str) -> list[float]:
    """T* / T of each pick; half of its first valid successor's where it failed (negative), 0.01 where none is (0).

    A workload of which nothing that was timed is valid on the device has no T*, and is left out.
    """
    found = []
    for cycles, best in zip(row["picks"][name], row["best"]):
        if best < float("inf"):
            found.append(best / cycles if cycles > 0 else 0.5 * best / -cycles if cycles else 0.01)
    return found


def read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the results file; raises KeyError or TypeError for what is none."""
    _ = row["kind"], row["seed"], row["picks"]
    return row


def cell(values: list[float]) -> str:
    """Median (quartiles), geometric mean."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.1%} ({low:.1%}-{high:.1%}), {geometric_mean(values):.1%}"


def lost(known: dict[str, Any]) -> bool:
    """Whether cross-validation found the adapted weights worse."""
    return bool(known["after"]["choice"] < known["before"]["choice"])


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_way(rows: list[dict[str, Any]], ways: dict[str, str]) -> str:
    """A row for each way, by its name in the table."""
    cells = [
        [shown, *(cell([geometric_mean(qualities(row, f"{way} {n}")) for row in rows]) for n in BUDGETS)]
        for way, shown in ways.items()
    ]
    return markdown(["way", *map(str, BUDGETS)], cells)


def write_report(rows: list[dict[str, Any]]) -> None:
    """``results/new_accelerator.md`` and its plot."""
    held, total = len(rows[0]["best"]), sum(len(row["best"]) for row in rows)
    counted = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
    seeds = {kind: count for kind, count in counted.items() if count}
    closed = np.mean([flag for row in rows for flag in row["closed"]])
    table = []
    for kind in (*KINDS, "all"):
        own = [row for row in rows if kind in ("all", row["kind"])]
        if own:
            names = [f"network {n}" for n in (0, *BUDGETS)]
            table.append([kind, *(cell([geometric_mean(qualities(row, name)) for row in own]) for name in names)])
    table.append(["bar", *(f"{bar:.0%}" for bar in BARS.values())])
    worse = [
        f"{row['kind']}:{row['seed']} at {n}"
        for row in rows
        for n in BUDGETS
        if geometric_mean(qualities(row, f"network {n}")) <= geometric_mean(qualities(row, f"scratch {n}"))
    ]
    names = ["network 0", *(f"{way} {n}" for n in BUDGETS for way in ("network", "scratch"))]
    possible = np.array([best for row in rows for best in row["best"]]) < np.inf
    judged = int(possible.sum())
    failed = [
        f"{name} {np.count_nonzero(possible & (np.concatenate([row['picks'][name] for row in rows]) <= 0))}"
        for name in names
    ]
    kept = [sum(lost(row["known"][str(n)]) for row in rows) for n in BUDGETS]
    parts = [
        "# Picks on new accelerators",
        "Written by `python benchmarks/new_accelerator.py`; its docstring says what is measured. T* / T of the picks "
        f"of {held} held-out workloads, noise-free, half of its first valid successor's where a pick fails: the "
        "geometric mean over workloads for each device; in the tables median (quartiles) over devices, then their "
        "geometric mean. "
        f"Devices: {', '.join(f'{n} of {kind}' for kind, n in seeds.items())}. "
        f"T* is proven for {closed:.0%} of the tasks, and the least time found for the others. Left out: "
        f"{total - judged} of {total} tasks, where no schedule that was timed is valid on the device.",
        "## Before, and after measurements in all",
        markdown(["kind", *map(str, (0, *BUDGETS))], table),
        "Weights that cross-validation finds worse are not taken, so that those before are kept: "
        + ", ".join(f"{count} times at {n}" for count, n in zip(kept, BUDGETS))
        + ".",
        "## Against the same budget spent from scratch",
        "From scratch: trees on the same measurements and features. Transplanted: the fastest measured schedule of the "
        "nearest measured workload.",
        by_way(rows, {"network": "network, adapted", "scratch": "from scratch", "transplant": "transplanted"}),
        f"Not better than from scratch: {', '.join(worse) if worse else 'never'}.",
        f"Picks that fail, of {judged}: {', '.join(failed)}.",
    ]
    some = [row for row in rows if f"{WAYS[0]} {BUDGETS[0]}" in row["picks"]]
    if some:
        before = cell([geometric_mean(qualities(row, "network 0")) for row in some])
        ways = {"network": "calibration"} | {way: way for way in WAYS}
        parts += ["## Other ways of adapting", f"On {len(some)} of the devices; before: {before}.", by_way(some, ways)]
    plot(rows, RESULTS / "new_accelerator.png")
    parts.append("![Pick quality by measurements](new_accelerator.png)")
    (RESULTS / "new_accelerator.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Median quality over devices with quartiles, by measurements."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for kind in (*KINDS, "scratch, all"):
        own = [row for row in rows if kind == row["kind"] or kind.startswith("scratch")]
        way, marks = ("scratch", BUDGETS) if kind.startswith("scratch") else ("network", (0, *BUDGETS))
        if own:
            values = np.array([[geometric_mean(qualities(row, f"{way} {n}")) for n in marks] for row in own])
            low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
            places = [max(n, 16) for n in marks]
            style = "--" if way == "scratch" else "-"
            axes.plot(places, middle, style, marker="o", label=kind)
            axes.fill_between(places, low, high, alpha=0.12)
    axes.set_xscale("log", base=4)
    axes.set_xticks([16, *BUDGETS], ["0", *map(str, BUDGETS)])
    axes.set(xlabel="measurements in all", ylabel="T* / T of the pick, held-out workloads")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--report", action="store_true", help="only the report of the rows that there are")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "new_accelerator.jsonl"
    chip = Accelerator.load("pynq")
    with open_lines(path, read_row) as results:
        rows = results.entries
        done = {(row["kind"], row["seed"]) for row in rows}
        for seed, kind in itertools.product(range(0 if args.report else args.seeds), args.kinds):
            if (kind, seed) in done:
                continue
            row = run_one(kind, seed, chip, picking.predictor_of(None))
            results.append([row])
            rows.append(row)
            text = "  ".join(
                f"{name} {geometric_mean(qualities(row, name)):.3f}" for name in row["picks"] if "plant" not in name
            )
            print(f"{kind}:{seed}  {text}  {row['seconds']} s", flush=True)
    if rows:
        write_report(rows)


if __name__ == "__main__":
    main()
