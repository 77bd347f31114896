"""Which VTA to build for some models: a sweep of the family, its front, and the best confirmed by real picks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.codesign.confirm import Confirmed, confirm
from oneshot_ml2.codesign.fpga import Clock, Fpga, load_fpga
from oneshot_ml2.codesign.front import OBJECTIVES, pareto, score
from oneshot_ml2.codesign.grid import default_grid, legal, name_of, read_grid
from oneshot_ml2.codesign.models import Model, read_model
from oneshot_ml2.codesign.resources import Budget, Overhead, Resources, budget_of, calibrated, resources_of
from oneshot_ml2.codesign.sweep import images_of, read_unit, sweep
from oneshot_ml2.common.errors import AcceleratorError, OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.common.tables import table
from oneshot_ml2.network.tasks import TaskNetwork, load_tasks
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator

FORMAT = "oneshot-ml2 codesign"
LOG = "codesign.jsonl"
# The best by prediction that are confirmed by real picks.
BEST = 16
# Sizes around the chosen accelerator's that are looked at, log2.
_AROUND = (-3, -2, -1, 1, 2, 3)


@dataclass(frozen=True)
class Member:
    """An accelerator of the grid within the budget.

    Attributes:
        accelerator: with its clock.
        clock: with its source.
        taken: of the FPGA.
        cycles: predicted, of each model, by name; with throughput as the objective of one image.
        ms: milliseconds of all models, each times its weight.
        value: what it is ranked by.
        source: ``predicted`` by the task network, ``picked`` or ``simulated``.
        parts: where the cycles of simulated picks go, by model.
    """

    accelerator: Accelerator
    clock: Clock
    taken: Resources
    cycles: Mapping[str, float]
    ms: float
    value: float
    source: str = "predicted"
    parts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "accelerator": json.loads(self.accelerator.to_json()),
            "name": self.accelerator.name,
            "cycles": {name: round(value) for name, value in self.cycles.items()},
            "ms": self.ms,
            "bram36": self.taken.bram36,
            "dsp": self.taken.dsp,
            "lut": self.taken.lut,
            "source": self.source,
        }


@dataclass(frozen=True)
class Codesign:
    """What a search found.

    Attributes:
        models: with their weights.
        fpga, budget, overhead: what was to be kept to.
        objective: one of `OBJECTIVES`.
        grid: legal members of the grid; ``legal``: of these within the budget.
        seconds: of the sweep.
        members: those within the budget, the best by prediction first.
        front: those that no other beats in time, memory and DSP blocks, the fastest first.
        best: the best by prediction, confirmed by real picks, the best of these first.
        sensitivity: of the first of ``best``: SRAM or bus -> (size, milliseconds by prediction) of others beside it.
    """

    models: tuple[Model, ...]
    fpga: Fpga
    budget: Budget
    overhead: Overhead
    objective: str
    grid: int
    legal: int
    seconds: float
    members: tuple[Member, ...]
    front: tuple[Member, ...]
    best: tuple[Member, ...]
    sensitivity: Mapping[str, Sequence[tuple[int, float]]]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "grid": self.grid,
            "legal": self.legal,
            "seconds": self.seconds,
            "front": [member.to_dict() for member in self.front],
            "best": [member.to_dict() for member in self.best],
        }

    def __str__(self) -> str:
        """A table of the confirmed ones, and the front's ends."""
        names = [model.name for model in self.models]
        head = ["accelerator", "ms", *(f"{name} cycles" for name in names), "BRAM36", "DSP", "LUT", "clock", "source"]
        rows = [
            [
                one.accelerator.name, f"{one.ms:.3f}", *(f"{one.cycles[name]:,.0f}" for name in names),
                f"{one.taken.bram36:.1f}", str(one.taken.dsp), f"{one.taken.lut:,}", f"{one.clock.mhz} MHz", one.source,
            ]
            for one in self.best
        ]  # fmt: skip
        found = f"{self.grid:,} accelerators, {self.legal:,} within the budget, {len(self.front)} on the front"
        return f"{table(head, rows, left={'accelerator', 'source'})}\n{found}; swept in {self.seconds:.1f} s"


def codesign(
    models: Any | Sequence[Any],
    fpga: str | Path | Fpga = "xc7z020",
    *,
    design: str = "hls",
    objective: str = "latency",
    grid: str | Path | Sequence[Accelerator] | None = None,
    clock: int | None = None,
    max_bram: float | None = None,
    max_dsp: int | None = None,
    weights: Mapping[str, float] | None = None,
    size: int | None = None,
    calibrate: str | Path | None = None,
    best: int = BEST,
    verify: bool = False,
    folder: str | Path | None = None,
    network: TaskNetwork | None = None,
    progress: bool = False,
) -> Codesign:
    """Find the accelerator to build for models.

    Args:
        models: one, or several: names of the zoo, ONNX files, lists of layers, or what `read_model` made.
        fpga: a name, a JSON file, or one.
        design: ``hls`` or ``chisel``.
        objective: one of `OBJECTIVES`.
        grid: a file (`read_grid`), accelerators, or none for `default_grid`.
        clock: MHz of all members; none: the table's, by FPGA and block.
        max_bram, max_dsp: limits below the FPGA's.
        weights: of the models' times, by name; 1 where none is given.
        size: of named models, as `compile` takes it.
        calibrate: a file of one's own synthesis reports (`calibrated`).
        best: how many are confirmed by real picks.
        verify: simulate those picks.
        folder: where a log is kept that the same call goes on with.
        network: the task network; none: the shipped one.
        progress: show bars on stderr.

    Raises:
        OneShotError: bad arguments or files, or nothing within the budget.
    """
    if objective not in OBJECTIVES:
        raise OneShotError(f"--objective is {objective!r}; allowed: {', '.join(OBJECTIVES)}")
    if best < 1:
        raise OneShotError(f"--best is {best}; allowed: 1 and more")
    if design not in DESIGNS:
        raise OneShotError(f"--design is {design!r}; allowed: {', '.join(DESIGNS)}")
    chosen = fpga if isinstance(fpga, Fpga) else load_fpga(fpga)
    overhead = Overhead() if calibrate is None else calibrated(calibrate)
    budget = budget_of(chosen, max_bram, max_dsp)
    every = _grid(grid, design)
    task = network or load_tasks()
    read = _models(models, size, weights or {})
    within = _within(every, budget, overhead, clock)
    if not within:
        raise OneShotError(
            f"none of {len(every):,} accelerators of the grid is within the budget ({budget.bram36:g} BRAM36, "
            f"{budget.dsp} DSP, {chosen.bus_bits} bits of bus): give a larger FPGA, or a --grid of smaller ones"
        )
    search = _Search(read, chosen, budget, overhead, objective, task, progress)
    with search.log(folder, [chip for chip, _, _ in within]) as log:
        began = time.perf_counter()
        members = search.swept(within, log)
        seconds = time.perf_counter() - began
        confirmed = search.confirmed(members[:best], verify, log)
        sensitivity = search.sensitivity(confirmed[0] if confirmed else members[0])
    costs = np.array([(one.ms, one.taken.bram36, one.taken.dsp) for one in members])
    front = tuple(members[place] for place in pareto(costs).tolist())
    return Codesign(
        read, chosen, budget, overhead, objective, len(every), len(within), round(seconds, 2), tuple(members), front,
        tuple(confirmed), sensitivity,
    )  # fmt: skip


def _grid(grid: str | Path | Sequence[Accelerator] | None, design: str) -> list[Accelerator]:
    if grid is None:
        return default_grid(design)
    return read_grid(grid, design) if isinstance(grid, (str, Path)) else list(grid)


def _models(models: Any | Sequence[Any], size: int | None, weights: Mapping[str, float]) -> tuple[Model, ...]:
    several = list(models) if isinstance(models, (list, tuple)) else [models]
    if not several:
        raise OneShotError("no model is given; name at least one")
    read = []
    for one in several:
        model = one if isinstance(one, Model) else read_model(one, size)
        weight = weights.get(model.name, weights.get(str(one) if isinstance(one, (str, Path)) else "", model.weight))
        if not 0 < weight < float("inf"):
            raise OneShotError(f"the weight of {model.name} is {weight:g}; allowed: above 0")
        read.append(dataclasses.replace(model, weight=weight))
    names = [model.name for model in read]
    unknown = set(weights) - set(names) - {str(one) for one in several if isinstance(one, (str, Path))}
    if unknown or len(set(names)) < len(names):
        what = f"a weight of {', '.join(sorted(unknown))}" if unknown else "a model twice"
        raise OneShotError(f"{what} among the models {', '.join(names)}; give each model once, and weights of these")
    return tuple(read)


def _within(
    every: Sequence[Accelerator], budget: Budget, overhead: Overhead, clock: int | None
) -> list[tuple[Accelerator, Clock, Resources]]:
    """The members that the budget holds, with their clocks."""
    found = []
    for accelerator in every:
        taken = resources_of(accelerator, budget.fpga, overhead)
        if budget.holds(accelerator, taken):
            at = budget.fpga.clock_of(accelerator.block) if clock is None else Clock(clock, accelerator.block, "given")
            named = accelerator.name if accelerator.name != "custom" else name_of(accelerator)
            extra = (("TARGET", json.dumps(budget.fpga.target)), ("HW_VER", '"0.0.2"'))
            chip = dataclasses.replace(accelerator, clock_mhz=at.mhz, name=named, extra=extra)
            found.append((chip, at, taken))
    return found


@dataclass(frozen=True)
class _Log:
    """What a log knows already, and what adds to it."""

    known: Mapping[str, NDArray[np.float64]]
    confirmed: Mapping[tuple[str, bool], Confirmed]
    keep: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Search:
    """What stays the same over the stages of a search."""

    models: tuple[Model, ...]
    fpga: Fpga
    budget: Budget
    overhead: Overhead
    objective: str
    network: TaskNetwork
    progress: bool

    @property
    def throughput(self) -> bool:
        return self.objective == "throughput"

    @contextlib.contextmanager
    def log(self, folder: str | Path | None, chips: Sequence[Accelerator]) -> Iterator[_Log]:
        """The log in a folder; without one nothing is kept."""
        if folder is None:
            yield _Log({}, {}, lambda entry: None)
            return
        asked = [[model.digest for model in self.models], self.throughput]
        what = [*asked, self.network.digest, [chip.to_json() for chip in chips]]
        header = {"format": FORMAT, "search": hashlib.sha256(json.dumps(what).encode()).hexdigest()}

        def read(entry: dict[str, Any]) -> tuple[str, Any]:
            if "confirmed" in entry:
                return "confirmed", Confirmed.from_dict(entry)
            return read_unit(entry)

        with open_lines(Path(folder) / LOG, read, header) as opened:
            confirmed = [one for kind, one in opened.entries if kind == "confirmed"]
            known = {kind: one for kind, one in opened.entries if kind != "confirmed"}
            by_key = {(one.accelerator, one.simulated): one for one in confirmed}
            yield _Log(known, by_key, lambda entry: opened.append([entry]))

    def member(self, chip: Accelerator, clock: Clock, taken: Resources, cycles: Mapping[str, float]) -> Member:
        """An accelerator with its figures; ``cycles``: of as many images as it runs at once."""
        images = images_of(chip, self.throughput)
        each = {name: value / images for name, value in cycles.items()}
        ms = sum(model.weight * each[model.name] for model in self.models) / (clock.mhz * 1000.0)
        return Member(chip, clock, taken, each, ms, score(self.objective, ms, taken, self.fpga))

    def swept(self, within: Sequence[tuple[Accelerator, Clock, Resources]], log: _Log) -> list[Member]:
        """All members that can run the models, the best by prediction first.

        Raises:
            OneShotError: there is none.
        """
        chips = [chip for chip, _, _ in within]
        cycles = sweep(self.models, chips, self.network, self.throughput, log.known, log.keep, self.progress)
        names = [model.name for model in self.models]
        found = [
            self.member(chip, clock, taken, dict(zip(names, column.tolist(), strict=True)))
            for (chip, clock, taken), column in zip(within, cycles.T, strict=True)
            if np.isfinite(column).all()
        ]
        if not found:
            raise OneShotError(
                "no accelerator of the grid has a legal schedule for every layer; give a --grid of larger SRAMs"
            )
        # Of equal ones what takes least.
        return sorted(found, key=lambda one: (one.value, one.taken.bram36, one.taken.dsp, one.accelerator.name))

    def confirmed(self, members: Sequence[Member], verify: bool, log: _Log) -> list[Member]:
        """Members by the cycles of real picks, the best first."""
        keys = [(one.accelerator.to_json(), verify) for one in members]
        real = {key: log.confirmed[key] for key in keys if key in log.confirmed}
        todo = [key for key in keys if key not in real]
        chips = [one.accelerator for one, key in zip(members, keys, strict=True) if key not in real]
        disable = None if self.progress else True
        with tqdm(total=len(members), initial=len(real), desc="picks", unit="accelerator", disable=disable) as bar:
            for place, made in confirm(self.models, chips, self.throughput, verify) if chips else ():
                if made is not None:
                    log.keep(made.to_dict())
                    real[todo[place]] = made
                bar.update()
        found = []
        for one, key in zip(members, keys, strict=True):
            if key in real:
                again = self.member(one.accelerator, one.clock, one.taken, real[key].cycles)
                source = "simulated" if verify else "picked"
                found.append(dataclasses.replace(again, source=source, parts=real[key].parts))
        return sorted(found, key=lambda one: (one.value, one.taken.bram36, one.taken.dsp, one.accelerator.name))

    def sensitivity(self, chosen: Member) -> dict[str, list[tuple[int, float]]]:
        """By memory and bus the sizes beside the chosen accelerator's, and predicted milliseconds with each.

        Sizes are bytes of an SRAM (of inputs and accumulators together on the HLS design), and bits of the bus.
        """
        chip = chosen.accelerator
        beside: dict[str, dict[int, Accelerator]] = {}
        for name, sizes in _beside(chip).items():
            beside[name] = {size: other for size, other in sizes.items() if legal(other)}
        chips = list(dict.fromkeys(other for sizes in beside.values() for other in sizes.values()))
        cycles = sweep(self.models, chips, self.network, self.throughput)
        names = [model.name for model in self.models]
        ms = {
            other: self.member(other, chosen.clock, chosen.taken, dict(zip(names, column.tolist(), strict=True))).ms
            for other, column in zip(chips, cycles.T, strict=True)
        }
        return {
            name: [(size, ms[other]) for size, other in sorted(sizes.items()) if np.isfinite(ms[other])]
            for name, sizes in beside.items()
        }


def _beside(chip: Accelerator) -> dict[str, dict[int, Accelerator]]:
    """By memory and bus the sizes around an accelerator's own, its own among them, with the accelerator of each."""
    own = {name: getattr(chip, f"log_{name}_buff_size") for name in ("uop", "inp", "wgt", "acc")}
    together = {"inp+acc": ("inp", "acc")} if chip.hls is not None else {"inp": ("inp",), "acc": ("acc",)}
    found: dict[str, dict[int, Accelerator]] = {}
    for title, names in ({"uop": ("uop",), "wgt": ("wgt",)} | together).items():
        sizes: dict[int, Accelerator] = {}
        for step in (0, *_AROUND):
            with contextlib.suppress(AcceleratorError):
                other = chip.with_srams(**(own | {name: own[name] + step for name in names}))
                sizes[sum(1 << (own[name] + step) for name in names)] = other
        found[title] = sizes
    buses = (64, 128, 256)
    return found | {"bus": {bus: dataclasses.replace(chip, bus_bits=bus) for bus in buses}}


def write_designs(found: Codesign, folder: str | Path) -> list[Path]:
    """Write the front's and the confirmed accelerators as JSON files that `compile --accelerator` takes; the paths.

    ``codesign.json`` in the folder holds what ``--json`` prints, and ``best.json`` is the first of the confirmed ones.

    Raises:
        OneShotError: a file cannot be written.
    """
    place = Path(folder) / "accelerators"
    first = found.best[0] if found.best else found.members[0]
    files = {place / f"{one.accelerator.name}.json": one.accelerator.to_json() for one in (*found.front, *found.best)}
    files |= {
        Path(folder) / "best.json": first.accelerator.to_json(),
        Path(folder) / "codesign.json": json.dumps(found.to_dict(), indent=1),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_whole(path, text + "\n")
    except OSError as error:
        raise OneShotError(f"cannot write to {folder}: {error.strerror or error}") from error
    return list(files)
