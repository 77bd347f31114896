"""How good the accelerators are that searches propose: ours, without a measurement, and others for as many evaluations.

Run: ``python benchmarks/codesign.py [--models NAME ...]``. An evaluation is what an accelerator takes for a model by
real picks, simulated. For every member of a grid that a budget holds, a floor of its time is proven first: the sum over
layers of the least proven bound of its schedules. Members are evaluated in ascending order of that floor until it is
more than a hundredth above the best time that was found: then no other one can be that near, and the best of *all*
members by real picks is known, with some hundred evaluations. Evaluations are rows of
``benchmarks/results/codesign.jsonl``; those that are there are not made again, so the command goes on where it ended.

The searches then look members up. What they propose and nobody has evaluated counts as fast as its floor, which is in
their favour; regret is the time of the best that a search has proposed beside the least of all members, - 1. Order and
error of the task network are told over members that are drawn at random. The report, ``codesign.md``, is made of all
rows.

Optuna's TPE is compared where it is installed (``pip install optuna``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
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
from oneshot_ml2.codesign.grid import default_grid, name_of
from oneshot_ml2.codesign.models import Model, read_model
from oneshot_ml2.codesign.resources import Budget, budget_of, resources_of
from oneshot_ml2.codesign.sweep import Teller, read_unit, sweep
from oneshot_ml2.common import metrics
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.network.tasks import load_tasks
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer
from oneshot_ml2.workload.max_pool2d import MaxPool2d

RESULTS = Path(__file__).parent / "results"
# The last is `yolov3_tiny`.
MODELS = ("resnet18", "mobilenet_v2", "bert_tiny", "yolov3_tiny")
# FPGA, and BRAM36 that may be taken of it.
BUDGETS: tuple[tuple[str, float | None], ...] = (("xc7z020", None), ("xc7z020", 60.0), ("xczu3eg", None))
# Evaluations after which a search's regret is told; ours has no more than 16.
EVALUATIONS = (1, 4, 16, 64)
_OURS = 16
_SEEDS = 10
# What a search has to come near, as a regret, and after how many evaluations it is given up.
_NEAR, _MOST = 0.01, 128
# Members that are drawn to tell the network's order and error.
_DRAWN = 150
# Members that are evaluated at a time.
_STEP = 32
# Members of a generation of the genetic algorithm, and how often a knob of a child is drawn anew.
_GENERATION, _MUTATION = 8, 0.2

Knobs = NDArray[np.int64]
Proposals = Iterator[int]


@dataclass
class Table:
    """The members of a budget that can run a model.

    Attributes:
        knobs: (n, 7), log2.
        ms: float64 (n,), milliseconds by real picks; NaN where nobody has evaluated.
        floors: float64 (n,), proven milliseconds.
        predicted: float64 (n,), milliseconds by the task network.
        evaluate: makes a member's milliseconds known; None once no more may be.
    """

    knobs: Knobs
    ms: NDArray[np.float64]
    floors: NDArray[np.float64]
    predicted: NDArray[np.float64]
    evaluate: Callable[[int], float | None] = lambda place: None

    @property
    def best(self) -> float:
        """The least time of all members: what nobody has evaluated cannot be below."""
        return float(np.nanmin(self.ms))

    @property
    def left(self) -> int:
        """Members that may be faster than the best that is known; 0: that one is the best of all."""
        return int((np.isnan(self.ms) & (self.floors < self.best)).sum())

    def time(self, place: int) -> float:
        """What a search is told of a member: its time, or a floor of it."""
        if np.isnan(self.ms[place]):
            made = self.evaluate(place)
            if made is None:
                return float(self.floors[place])
            self.ms[place] = made
        return float(self.ms[place])

    def nearest(self, wanted: Sequence[int]) -> int:
        """The member nearest to some knobs: what a search proposes need not be legal."""
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
        parents = sorted(known, key=table.time)[:_GENERATION]
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
        study.tell(trial, table.time(place))


def ours(table: Table, rng: np.random.Generator) -> Proposals:
    yield from np.argsort(table.predicted, kind="stable").tolist()


SEARCHES: dict[str, Callable[[Table, np.random.Generator], Proposals]] = {
    "ours": ours,
    "random": by_chance,
    "genetic": genetic,
    "TPE": tpe,
    "three knobs": three_knobs,
}


@dataclass(frozen=True)
class Course:
    """How a search went: regrets after each of `EVALUATIONS`, evaluations to `_NEAR` (`_MOST`: it never got there)."""

    regrets: list[float]
    needed: int


def course_of(table: Table, search: Callable[[Table, np.random.Generator], Proposals], seed: int) -> Course:
    """Follow a search until it has nothing more to propose, or long enough; it then stays where it is."""
    found, best, needed, seen = [], np.inf, _MOST, set[int]()
    for place in itertools.islice(search(table, np.random.default_rng(seed)), 4 * _MOST):
        # What was evaluated before is no evaluation again.
        seen.add(place)
        best = min(best, table.time(place) / table.best - 1)
        if len(seen) in EVALUATIONS and len(found) < EVALUATIONS.index(len(seen)) + 1:
            found.append(best)
        if best <= _NEAR:
            needed = min(needed, len(seen))
        if len(seen) >= (max(EVALUATIONS) if needed < _MOST else min(_MOST, len(table.ms))):
            break
    return Course(found + [best] * (len(EVALUATIONS) - len(found)), needed)


# The table of evaluations ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Floors:
    """Tells what no schedule of a workload goes below: `sweep`'s teller of proven floors."""

    def least(self, workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        return space_kind(DEFAULT_KIND).families.floors(workload, accelerators)


def until_proven(
    floors: NDArray[np.float64],
    times: Callable[[], NDArray[np.float64]],
    evaluate: Callable[[list[int]], None],
    margin: float = _NEAR,
    step: int = _STEP,
) -> None:
    """Evaluate members until no other can be within ``margin`` of the best, in ascending order of their floors.

    Args:
        floors: float64 (n,), of the members' times; infinite: cannot run the model.
        times: gives those that are known, float64 (n,), NaN for others, infinite for what cannot run the model.
        evaluate: makes some more of them known.
        step: members of a step.
    """
    order = np.argsort(floors, kind="stable")
    while True:
        known = times()
        best = np.nanmin(np.append(known, np.inf))
        open_ones = order[np.isnan(known[order]) & np.isfinite(floors[order])]
        near = open_ones[floors[open_ones] <= best * (1 + margin)][:step].tolist()
        if not near:
            return
        evaluate(near)


@dataclass
class Evaluations:
    """Simulated cycles of the picks of models on accelerators, by their names; 0: a layer has no legal schedule."""

    known: dict[tuple[str, str], int]
    keep: Callable[[dict[str, Any]], None]

    def of(self, model: Model, chips: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Cycles, float64 (n,); NaN where nobody has evaluated, infinite where the model cannot run."""
        found = np.array([self.known.get((model.name, chip.name), np.nan) for chip in chips])
        return np.where(found == 0, np.inf, found)

    def make(self, model: Model, chips: Sequence[Accelerator], what: str) -> None:
        """Evaluate those that are not known yet."""
        todo = [chip for chip in chips if (model.name, chip.name) not in self.known]
        with tqdm(total=len(todo), desc=f"{model.name}: {what}", disable=None) as bar:
            for place, real in confirm([model], todo, throughput=False, verify=True):
                name, cycles = todo[place].name, 0 if real is None else real.cycles[model.name]
                self.known[model.name, name] = cycles
                self.keep({"model": model.name, "accelerator": name, "cycles": cycles})
                bar.update()


@contextlib.contextmanager
def evaluations(path: Path) -> Iterator[Evaluations]:
    """Those of a file, which it goes on with."""
    header = {"format": "oneshot-ml2 codesign table", "what": "simulated cycles of real picks"}

    def read(entry: dict[str, Any]) -> tuple[tuple[str, str], int]:
        return (entry["model"], entry["accelerator"]), int(entry["cycles"])

    with open_lines(path, read, header) as opened:
        yield Evaluations(dict(opened.entries), lambda entry: opened.append([entry]))


def swept(model: Model, chips: Sequence[Accelerator], teller: Teller, folder: str | None, name: str) -> Any:
    """Cycles of a model on accelerators, float64 (n,); with a folder they are kept there under a name."""
    if folder is None:
        return sweep([model], chips, teller, progress=True)[0]
    header = {"format": "oneshot-ml2 codesign sweeps"}
    with open_lines(Path(folder) / f"{name}.jsonl", read_unit, header) as opened:
        known = dict(opened.entries)
        return sweep([model], chips, teller, False, known, lambda entry: opened.append([entry]), progress=True)[0]


def yolov3_tiny() -> Model:
    """YOLOv3's tiny form (Redmon and Farhadi, arXiv 1804.02767) at 320 x 320 with 80 classes, as a list of layers."""
    plain, layers = Epilogue(bias=True, shift=8, clip=(-128, 127)), list[Layer]()

    def conv(size: int, channels: int, out: int, kernel: int) -> None:
        workload = Conv2d(1, channels, size, size, out, kernel, kernel, 1, kernel // 2, 1, plain)
        layers.append(Layer(f"conv{len(layers)}", workload))

    for level, (channels, out) in enumerate(itertools.pairwise((3, 16, 32, 64, 128, 256, 512))):
        size = 320 >> level
        conv(size, channels, out, 3)
        # The last one leaves the size as it is.
        last = size == 10
        pool = MaxPool2d(1, out, size, size, 2, 2, 1 if last else 2, (0, 0, 1, 1) if last else 0)
        layers.append(Layer(f"pool{len(layers)}", pool))
    for channels, out, kernel in ((512, 1024, 3), (1024, 256, 1), (256, 512, 3), (512, 255, 1), (256, 128, 1)):
        conv(10, channels, out, kernel)
    # What is joined: 128 channels, upsampled, and 256 of before.
    conv(20, 384, 256, 3)
    conv(20, 256, 255, 1)
    return Model("yolov3_tiny", tuple(layers))


def titled(budget: Budget) -> str:
    return budget.fpga.name + ("" if budget.bram36 == budget.fpga.bram36 else f", {budget.bram36:g} BRAM36")


@dataclass(frozen=True)
class Study:
    """A model on all members that some budgets hold; ``floors``: proven ones of its cycles, infinite: cannot run it."""

    model: Model
    chips: Sequence[Accelerator]
    floors: NDArray[np.float64]
    budgets: Sequence[Budget]
    made: Evaluations

    def held(self, budget: Budget) -> NDArray[np.int64]:
        """Places of the members of a budget that can run the model, int64 (m,)."""
        inside = [budget.holds(chip, resources_of(chip, budget.fpga)) for chip in self.chips]
        return np.flatnonzero(np.array(inside) & np.isfinite(self.floors))

    def scale(self, budget: Budget, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Milliseconds of a cycle of members, float64 (m,)."""
        return np.array([1.0 / (budget.fpga.clock_of(self.chips[at].block).mhz * 1000.0) for at in places.tolist()])

    def evaluate(self, places: Sequence[int], what: str) -> None:
        self.made.make(self.model, [self.chips[place] for place in places], what)

    def drawn(self, count: int) -> list[int]:
        """Members that are drawn at random, whatever is known of them."""
        able = np.flatnonzero(np.isfinite(self.floors))
        places: list[int] = np.random.default_rng(0).permutation(able)[:count].tolist()
        return places

    def known_of(self, places: Sequence[int]) -> list[int]:
        """The first of some members, up to one that nobody has evaluated: what is known of must not choose."""
        known = ~np.isnan(self.made.of(self.model, [self.chips[place] for place in places]))
        return list(places[: int(np.argmin(np.append(known, False)))])

    def prove(self, budget: Budget, margin: float) -> None:
        """Evaluate until the best member of a budget is known."""
        held = self.held(budget)
        scale = self.scale(budget, held)
        own = [self.chips[place] for place in held.tolist()]
        until_proven(
            self.floors[held] * scale,
            lambda: self.made.of(self.model, own) * scale,
            lambda places: self.evaluate(held[places].tolist(), titled(budget)),
            margin,
        )

    def table(self, budget: Budget, predicted: NDArray[np.float64], lazy: int) -> Table:
        """What searches look up; ``lazy``: how many members more may be evaluated for them."""
        held = self.held(budget)
        scale, own, left = self.scale(budget, held), [self.chips[place] for place in held.tolist()], [lazy]

        def evaluate(place: int) -> float | None:
            if left[0] <= 0:
                return None
            left[0] -= 1
            self.evaluate([int(held[place])], "asked for")
            return float(self.made.of(self.model, [own[place]])[0] * scale[place])

        knobs = np.array([knobs_of(chip) for chip in own], dtype=np.int64)
        ms = self.made.of(self.model, own) * scale
        return Table(knobs, ms, self.floors[held] * scale, predicted[held] * scale, evaluate)


def report(rows: list[dict[str, Any]], told: list[str], members: int, grid: int) -> str:
    """The report in Markdown; ``told``: rows on the predictions and the best."""
    head = ["model", "budget", "search", *(f"after {n}" for n in EVALUATIONS), f"to {_NEAR:.0%}"]
    lines = [
        "# Searches for an accelerator",
        "",
        f"`python benchmarks/codesign.py`. Of {grid:,} members of the grid {members:,} are within a budget. Design "
        f"regret: time of the best that was evaluated beside the least of all members of the budget, by real picks, "
        f"simulated, - 1; medians of {_SEEDS} seeds. The least is known, as a floor is proven of every member. Ours "
        "is the order that the task network gives: its first choice is one evaluation. A member that nobody has "
        "evaluated counts as fast as its floor, which is in favour of other searches. Evaluations until the regret is "
        f"{_NEAR:.0%} are told up to {_MOST}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        figures = [f"{value:.2%}" for value in row["regret"]]
        lines.append("| " + " | ".join([*map(str, row["key"]), *figures, f"{row['needed']:g}"]) + " |")
    columns = (
        "model", "budget", "drawn", "error", "median", "tau", "the best", "evaluated of those that run it", "that best",
        "stock Pynq",
    )  # fmt: skip
    lines += [
        "", "Error and order of the predicted times over members that were drawn at random, and the best of each:", "",
        "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *told,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def errors_of(study: Study, budget: Budget, table: Table, drawn: Sequence[int]) -> str:
    """A line on how far predictions of drawn members' times are off, and how they order them, and on the best."""
    held = study.held(budget)
    own = np.isin(held, drawn) & np.isfinite(table.ms) & np.isfinite(table.predicted)
    off, figures = np.abs(table.predicted[own] / table.ms[own] - 1), [f"{own.sum()}", "", "", ""]
    if own.sum() > 1:
        tau = metrics.kendall_tau(table.ms[own], table.predicted[own])
        figures[1:] = [f"{off.mean():.2%}", f"{np.median(off):.2%}", f"{tau:.4f}"]
    best = study.chips[held[np.nanargmin(table.ms)]]
    told = [
        study.model.name, titled(budget), *figures,
        f"`{best.name}`, {table.best:.3f} ms", f"{np.isfinite(table.ms).sum()} of {len(held):,}",
        f"{table.left} left" if table.left else "proven",
    ]  # fmt: skip
    stock = [place for place, at in enumerate(held.tolist()) if study.chips[at].name == stock_name()]
    there = bool(stock) and np.isfinite(table.ms[stock[0]])
    told.append(f"{table.ms[stock[0]]:.3f} ms, {table.ms[stock[0]] / table.best - 1:.2%} above" if there else "")
    return "| " + " | ".join(told) + " |"


@functools.cache
def stock_name() -> str:
    """What the grid calls VTA's own configuration for the Pynq."""
    return name_of(Accelerator.load("pynq-hls"))


def compare(model: Model, budget: Budget, table: Table) -> list[dict[str, Any]]:
    """A row of the report for each search."""
    rows = []
    for title, search in SEARCHES.items():
        try:
            courses = [course_of(table, search, seed) for seed in range(1 if title == "ours" else _SEEDS)]
        except ModuleNotFoundError as error:
            warnings.warn(f"{title} is left out: {error}", stacklevel=2)
            continue
        regrets = np.median([course.regrets for course in courses], axis=0).tolist()
        needed = float(np.median([course.needed for course in courses]))
        rows.append({"key": [model.name, titled(budget), title], "regret": regrets, "needed": needed})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help=f"default {' '.join(MODELS)}")
    parser.add_argument("--fpga", choices=list(FPGAS), help="only the budgets of this one")
    parser.add_argument(
        "--drawn", type=int, default=_DRAWN, metavar="N", help=f"members drawn for the order; default {_DRAWN}"
    )
    parser.add_argument("--lazy", type=int, default=0, metavar="N", help="members evaluated for other searches, each")
    parser.add_argument("--margin", type=float, default=_NEAR, help="what is proven of the second best; default 0.01")
    parser.add_argument("--sweeps", metavar="FOLDER", help="where floors and predictions are kept (default: nowhere)")
    parser.add_argument("--only-table", action="store_true", help="evaluate, without the network and a report")
    parser.add_argument("--out", default=str(RESULTS / "codesign"), metavar="PATH", help="of .jsonl and .md")
    args = parser.parse_args()
    budgets = [budget_of(FPGAS[name], most) for name, most in BUDGETS if args.fpga in (None, name)]
    every = default_grid("hls")
    chips = [c for c in every if any(budget.holds(c, resources_of(c, budget.fpga)) for budget in budgets)]
    network = load_tasks()
    rows, told, studies = [], [], []
    with evaluations(Path(f"{args.out}.jsonl")) as made:
        for name in args.models:
            model = yolov3_tiny() if name == "yolov3_tiny" else read_model(name)
            studies.append(Study(model, chips, swept(model, chips, Floors(), args.sweeps, "floors"), budgets, made))
            studies[-1].evaluate([place for place, chip in enumerate(chips) if chip.name == stock_name()], "stock")
            for budget in budgets:
                studies[-1].prove(budget, args.margin)
        for study in studies:
            study.evaluate(study.drawn(args.drawn), "drawn")
        for study in [] if args.only_table else studies:
            predicted = swept(study.model, chips, network, args.sweeps, network.digest[:12])
            for budget in budgets:
                held = study.held(budget)
                first = np.argsort(predicted[held] * study.scale(budget, held), kind="stable")[:_OURS]
                # Without a proven best there is no regret.
                if not study.table(budget, predicted, 0).left:
                    study.evaluate(held[first].tolist(), "ours")
                table = study.table(budget, predicted, args.lazy)
                rows += [] if table.left else compare(study.model, budget, table)
                told.append(errors_of(study, budget, table, study.known_of(study.drawn(_DRAWN))))
    if not args.only_table:
        text = report(rows, told, len(chips), len(every))
        Path(f"{args.out}.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
