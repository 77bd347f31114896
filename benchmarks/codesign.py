"""How good the accelerators are that searches propose: ours, without a measurement, and others for as many evaluations.

Run: ``python benchmarks/codesign.py [--models NAME ...] [--limit N]``. An evaluation is what an accelerator takes for a
model by real picks, simulated. All members of a grid that a budget holds are evaluated once: a row each of
``benchmarks/results/codesign.jsonl``; rows that are there are not made again, so the command goes on where it ended.
With ``--limit`` it is so many of the grid, drawn evenly. The searches then look rows up: regret is the time of the best
that a search has evaluated beside the least of all rows, - 1. The report, ``codesign.md``, is made of all rows.

Optuna's TPE is compared where it is installed (``pip install optuna``).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.codesign.confirm import confirm
from oneshot_ml2.codesign.fpga import FPGAS
from oneshot_ml2.codesign.grid import default_grid
from oneshot_ml2.codesign.models import Model, read_model
from oneshot_ml2.codesign.resources import Budget, budget_of, resources_of
from oneshot_ml2.codesign.sweep import sweep
from oneshot_ml2.common import metrics
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.network.tasks import load_tasks
from oneshot_ml2.vta.accelerator import Accelerator

RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet18", "mobilenet_v2", "bert_tiny")
# FPGA, and BRAM36 that may be taken of it.
BUDGETS: tuple[tuple[str, float | None], ...] = (("xc7z020", None), ("xc7z020", 60.0), ("xczu3eg", None))
# Evaluations after which a search's regret is told; ours has no more than 16.
EVALUATIONS = (1, 4, 16, 64)
_SEEDS = 50
# Members of a generation of the genetic algorithm, and how often a knob of a child is drawn anew.
_GENERATION, _MUTATION = 8, 0.2

Knobs = NDArray[np.int64]
Proposals = Iterator[int]


@dataclass(frozen=True)
class Table:
    """The members of a budget that were evaluated: their knobs (n, 7), log2, and milliseconds of the model (n,)."""

    knobs: Knobs
    ms: NDArray[np.float64]
    predicted: NDArray[np.float64]

    def nearest(self, wanted: Sequence[int]) -> int:
        """The member nearest to some knobs: what a search proposes need not be legal, or in the table."""
        return int(np.abs(self.knobs - np.array(wanted)).sum(axis=1).argmin())


def knobs_of(chip: Accelerator) -> tuple[int, ...]:
    """What may be chosen of an accelerator, log2: block, batch, bus, and the elements of each SRAM."""
    uop = chip.log_uop_buff_size - 2
    depths = (chip.log_inp_depth, chip.log_wgt_depth, chip.log_acc_depth)
    return (chip.log_block, chip.log_batch, chip.bus_bits.bit_length() - 1, uop, *depths)


# Searches: each proposes members one after another, and is told what they took ---------------------


def by_chance(table: Table, rng: np.random.Generator) -> Proposals:
    yield from rng.permutation(len(table.ms)).tolist()


def genetic(table: Table, rng: np.random.Generator) -> Proposals:
    """Two parents of the better half, a child of their knobs, some of them drawn anew."""
    known = rng.permutation(len(table.ms))[:_GENERATION].tolist()
    yield from known
    while True:
        parents = sorted(known, key=lambda place: table.ms[place])[:_GENERATION]
        one, other = (table.knobs[parents[i]] for i in rng.integers(len(parents), size=2))
        child = np.where(rng.random(one.shape) < 0.5, one, other)
        random = table.knobs[rng.integers(len(table.ms))]
        place = table.nearest(np.where(rng.random(one.shape) < _MUTATION, random, child).tolist())
        if place in known:
            place = int(rng.integers(len(table.ms)))
        known.append(place)
        yield place


def three_knobs(table: Table, rng: np.random.Generator) -> Proposals:
    """What DCOC (arXiv 2407.08192) searches of the hardware: the GEMM core's shape; SRAMs and bus are the stock's."""
    stock = np.array(knobs_of(Accelerator.load("pynq-hls")))
    shapes = sorted({(int(row[0]), int(row[1])) for row in table.knobs})
    for at in rng.permutation(len(shapes)).tolist():
        yield table.nearest([*shapes[at], *stock[2:].tolist()])


def tpe(table: Table, rng: np.random.Generator) -> Proposals:
    """Optuna's TPE over the same knobs."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(rng.integers(1 << 30))))
    lists = [sorted(set(column.tolist())) for column in table.knobs.T]
    while True:
        trial = study.ask()
        place = table.nearest([trial.suggest_categorical(str(i), values) for i, values in enumerate(lists)])
        yield place
        study.tell(trial, float(table.ms[place]))


def ours(table: Table, rng: np.random.Generator) -> Proposals:
    yield from np.argsort(table.predicted, kind="stable").tolist()


SEARCHES: dict[str, Callable[[Table, np.random.Generator], Proposals]] = {
    "ours": ours,
    "random": by_chance,
    "genetic": genetic,
    "TPE": tpe,
    "three knobs": three_knobs,
}


def regrets(table: Table, search: Callable[[Table, np.random.Generator], Proposals], seed: int) -> list[float]:
    """The regret after each of `EVALUATIONS`."""
    found, best, evaluated = [], np.inf, 0
    for place in search(table, np.random.default_rng(seed)):
        best = min(best, table.ms[place])
        evaluated += 1
        if evaluated in EVALUATIONS:
            found.append(float(best / table.ms.min() - 1))
        if evaluated >= max(EVALUATIONS):
            break
    # A search that has nothing more to propose stays where it is.
    return found + [float(best / table.ms.min() - 1)] * (len(EVALUATIONS) - len(found))


def needed(table: Table, search: Callable[[Table, np.random.Generator], Proposals], regret: float, seed: int) -> int:
    """Evaluations until the regret is no more; as many as there are members where it never is."""
    least = table.ms.min() * (1 + regret)
    for count, place in enumerate(search(table, np.random.default_rng(seed)), 1):
        if table.ms[place] <= least:
            return count
        if count >= len(table.ms):
            break
    return len(table.ms)


# The table of all evaluations ------------------------------------------------------------------------


def evaluate(models: Sequence[Model], chips: Sequence[Accelerator], path: Path) -> dict[tuple[str, str], int]:
    """Simulated cycles of the picks of each model on each accelerator, by their names; goes on with a file."""
    header = {"format": "oneshot-ml2 codesign table", "what": "simulated cycles of real picks"}

    def read(entry: dict[str, Any]) -> tuple[tuple[str, str], int]:
        return (entry["model"], entry["accelerator"]), int(entry["cycles"])

    with open_lines(path, read, header) as opened:
        known = dict(opened.entries)
        todo = [(m, c) for c in chips for m in models if (m.name, c.name) not in known]
        for model, chip in tqdm(todo, desc="evaluations", disable=None):
            real = confirm([model], chip, throughput=False, verify=True)
            cycles = 0 if real is None else real.cycles[model.name]
            known[model.name, chip.name] = cycles
            opened.append([{"model": model.name, "accelerator": chip.name, "cycles": cycles}])
    return known


def table_of(
    model: Model, chips: Sequence[Accelerator], known: dict[tuple[str, str], int], predicted: NDArray[np.float64],
    budget: Budget,
) -> Table:  # fmt: skip
    """The evaluated members of a budget that can run a model."""
    rows = []
    for chip, cycles in zip(chips, predicted.tolist()):
        real = known.get((model.name, chip.name), 0)
        if real and np.isfinite(cycles) and budget.holds(chip, resources_of(chip, budget.fpga)):
            scale = budget.fpga.clock_of(chip.block).mhz * 1000.0
            rows.append((knobs_of(chip), real / scale, cycles / scale))
    knobs, ms, guesses = zip(*rows) if rows else ((), (), ())
    return Table(np.array(knobs, dtype=np.int64), np.array(ms), np.array(guesses))


def report(rows: list[dict[str, Any]], told: list[str], grid: int) -> str:
    """The report in Markdown; ``told``: lines on the predictions."""
    head = ["model", "budget", "members", "search", *(f"after {n}" for n in EVALUATIONS), "to 1 %"]
    lines = [
        "# Searches for an accelerator",
        "",
        f"`python benchmarks/codesign.py`. Design regret: time of the best that was evaluated beside the least "
        f"of all {grid:,} evaluated members of the grid that a budget holds, - 1; medians of {_SEEDS} seeds. Ours is "
        "the order that the task network gives: its first choice is one evaluation.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        figures = [f"{value:.2%}" for value in row["regret"]]
        lines.append("| " + " | ".join([*map(str, row["key"]), *figures, f"{row['needed']:g}"]) + " |")
    lines += ["", "Error of the predicted time of a model over these members, and order:", "", *told]
    return "\n".join(lines) + "\n"


def errors_of(table: Table) -> str:
    """How far the network's predictions of the members' times are off, and how it orders them."""
    off = np.abs(table.predicted / table.ms - 1)
    return f"{off.mean():.2%} (median {np.median(off):.2%}), tau {metrics.kendall_tau(table.ms, table.predicted):.4f}"


def compare(model: Model, budget: Budget, table: Table) -> list[dict[str, Any]]:
    """A row of the report for each search."""
    rows = []
    name = budget.fpga.name + ("" if budget.bram36 == budget.fpga.bram36 else f", {budget.bram36:g} BRAM36")
    for title, search in SEARCHES.items():
        try:
            seeds = 1 if title == "ours" else _SEEDS
            every = np.array([regrets(table, search, seed) for seed in range(seeds)])
            counts = [needed(table, search, 0.01, seed) for seed in range(seeds)]
        except ModuleNotFoundError as error:
            warnings.warn(f"{title} is left out: {error}", stacklevel=2)
            continue
        key = [model.name, name, len(table.ms), title]
        rows.append({"key": key, "regret": np.median(every, axis=0).tolist(), "needed": float(np.median(counts))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help=f"default {' '.join(MODELS)}")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="members that are evaluated (default: all)")
    parser.add_argument("--fpga", choices=list(FPGAS), help="only the budgets of this one")
    parser.add_argument("--out", default=str(RESULTS / "codesign"), metavar="PATH", help="of .jsonl and .md")
    args = parser.parse_args()
    budgets = [budget_of(FPGAS[name], most) for name, most in BUDGETS if args.fpga in (None, name)]
    every = [
        chip for chip in default_grid("hls")
        if any(budget.holds(chip, resources_of(chip, budget.fpga)) for budget in budgets)
    ]  # fmt: skip
    limit = args.limit or len(every)
    chips = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:limit].tolist()]
    models = [read_model(name) for name in args.models]
    known = evaluate(models, chips, Path(f"{args.out}.jsonl"))
    # Only those of which every model's evaluation is there.
    chips = [chip for chip in chips if all((model.name, chip.name) in known for model in models)]
    network = load_tasks()
    rows, told = [], []
    for model in models:
        predicted = sweep([model], chips, network, progress=True)[0]
        for budget in budgets:
            table = table_of(model, chips, known, predicted, budget)
            if len(table.ms):
                rows += compare(model, budget, table)
                told.append(f"- {model.name}, {budget.fpga.name}, {budget.bram36:g} BRAM36: {errors_of(table)}")
    text = report(rows, told, len(chips))
    Path(f"{args.out}.md").write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps({"members": len(chips), "grid": len(every)}))


if __name__ == "__main__":
    main()
