"""How good the zero-measurement picks are on frozen tasks, beside other ways to pick.

T* comes from the tables that ``oneshot-ml2 optimum`` wrote; the picks are made first and timed afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common import metrics, resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.evaluation import baselines
from oneshot_ml2.evaluation.optimum import Optimum, Task, read_optima, read_tasks, sample_of, version
from oneshot_ml2.evaluation.tasks import evenly, summarise_picks
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor, digest
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training.peers import registry as peers
from oneshot_ml2.vta.accelerator import DESIGNS
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Peer

FORMAT = "oneshot-ml2 evaluation"

# The frozen sets, by file name.
SETS = {
    "workloads": "unseen workloads, seen accelerators",
    "resnet18": "ResNet-18's layers, seen accelerators",
    "unseen": "unseen workloads, unseen accelerators",
    "operators": "unseen operators of other kinds, seen accelerators",
    "networks": "layers of six networks never trained on, pynq and zcu104",
    "outside": "unseen workloads and operators, accelerators outside of the trained ranges",
    "resnet18_hls": "ResNet-18's layers, boards of the HLS design",
    "unseen_hls": "unseen workloads and operators, unseen accelerators of the HLS design",
}
PICK = "network (ours)"
BASELINES = {
    "random": "random valid schedule",
    "bytes": "fewest DMA bytes",
    "roofline": "max(compute, traffic)",
    "estimate": "closed-form estimate",
    "transplanted": "nearest training task's best",
    "simulated": "simulation for our wall time",
}


@dataclass(frozen=True)
class Order:
    """How a predictor orders the valid schedules of a task's sample.

    Attributes:
        candidates: how many there are.
        best, top1, top5: least cycles of all, of its first, of its first five; NaN without candidates.
        peak1, peak5: TenSet's `metrics.peak_score`.
        tau, pairwise: `metrics.kendall_tau`, `metrics.pairwise_accuracy` of predicted against true cycles.
    """

    candidates: int
    best: float
    top1: float
    top5: float
    peak1: float
    peak5: float
    tau: float
    pairwise: float

    @classmethod
    def of(cls, cycles: NDArray[np.int64], guess: NDArray[Any]) -> Order:
        """Of true cycles (n,) and a guess of them (n,), or of anything that grows with them."""
        return cls(
            candidates=len(cycles),
            best=metrics.best_of_first(cycles, cycles, 1),
            top1=metrics.best_of_first(cycles, guess, 1),
            top5=metrics.best_of_first(cycles, guess, 5),
            peak1=metrics.peak_score(cycles, guess, 1),
            peak5=metrics.peak_score(cycles, guess, 5),
            tau=metrics.kendall_tau(cycles, guess),
            pairwise=metrics.pairwise_accuracy(cycles, guess),
        )


@dataclass(frozen=True)
class PeerResult:
    """One peer's figures of a task: T* / T of its choice and of the best of its first five, and its order."""

    quality: float
    top5: float
    order: Order


@dataclass(frozen=True)
class TaskResult:
    """One task's figures; qualities are T* / T (`metrics.pick_quality`).

    Attributes:
        workload, accelerator, count: of the task; ``best``: T* in cycles (``exact``: else the bound where its search
            stopped); ``near_share``, ``median_ratio``: see `optimum.Optimum`.
        cycles, predicted, spread, source, lowered, seconds: of the pick; ``size``: schedules scored for it.
        quality: of the pick; ``top5``, ``top10``: of the best among the first 5 or 10; ``first_lowers``: whether the
            network's first choice by p_valid and latency alone lowers, ``first_legal_lowers``: with the closed form.
        invalid_of_50: invalid share of the first 50 by p_valid and latency alone.
        order: the network's, of the table's valid sample.
        baselines: quality of each of `BASELINES`; ``simulated``: how many schedules that one timed.
        peers: of each of `peers.registry` if they were given.
    """

    workload: str
    accelerator: str
    count: int
    best: int
    exact: bool
    near_share: float
    median_ratio: float
    cycles: int
    predicted: float
    spread: float
    source: str
    lowered: int
    seconds: float
    size: int
    quality: float
    top5: float
    top10: float
    first_lowers: bool
    first_legal_lowers: bool
    invalid_of_50: float
    order: Order
    baselines: dict[str, float]
    simulated: int
    peers: dict[str, PeerResult]


_Evaluated = tuple[TaskResult, NDArray[np.bool_], NDArray[np.float32]]


def evaluate_task(
    task: Task,
    known: Optimum,
    network: Predictor,
    transplants: baselines.BestKnown,
    others: Mapping[str, Peer] = MappingProxyType({}),
) -> _Evaluated:
    """A task's figures, and of the table's sample the true validity (n,) and p_valid (n,).

    Raises:
        OneShotError: a schedule beats T*: the table is of another version.
    """
    picked = picking.pick(task.workload, task.accelerator, network)
    space = picked.space
    ranking = picking.rank(space, network)
    trusted = ranking.best(len(ranking.indices))
    legal = trusted[picking.legal_positions(space, trusted, 10)]
    alone = picking.rank(space, network, closed_form=False).best(50)
    form = baselines.ClosedForm.of(space)
    rivals = {
        "bytes": baselines.fewest_bytes(form),
        "roofline": baselines.roofline(form),
        "estimate": baselines.closed_form(form),
        "transplanted": transplants.transplanted(space),
    }
    found, timed = baselines.simulated(space, picked.seconds)
    chosen = _choices(space, others)
    # Only now anything is timed.
    first = np.array([picked.index]) if picked.source == "fallback" else legal
    ours = _cycles(space, first)
    qualities = _qualities(space, known, rivals | {"simulated": found})
    fastest = min([int(ours[ours > 0].min()), *known.valid_cycles.tolist()])
    if fastest < known.best or max(qualities.values()) > 1.0:
        raise OneShotError(f"{task.layer.name}: a schedule beats T* = {known.best}; make the table of optima anew")
    cycles = int(_cycles(space, np.array([picked.index]))[0])
    sample, truth = sample_of(space), np.array(known.sample_cycles)
    scores, valid = network.score(space, sample), truth > 0
    of_peers = {
        name: _peer_result(space, other, chosen[name], known.best, sample[valid], truth[valid])
        for name, other in others.items()
    }
    result = TaskResult(
        **_known_figures(known),
        cycles=cycles,
        predicted=picked.predicted_cycles,
        spread=picked.spread,
        source=picked.source,
        lowered=picked.lowered,
        seconds=picked.seconds,
        size=picked.scored,
        quality=metrics.pick_quality(known.best, cycles),
        top5=metrics.top_k_quality(known.best, ours, 5),
        top10=metrics.top_k_quality(known.best, ours, 10),
        first_lowers=_lowers(space, alone[:1]),
        first_legal_lowers=_lowers(space, legal[:1]),
        invalid_of_50=metrics.invalid_rate(space.validity(alone) != Reason.VALID),
        order=Order.of(truth[valid], scores.cycles[valid]),
        baselines={name: qualities[name] for name in BASELINES},
        simulated=timed,
        peers=of_peers,
    )
    return result, valid, scores.p_valid


def _known_figures(known: Optimum) -> dict[str, Any]:
    """What a table of optima says of a task, as `TaskResult` names it."""
    return {
        "workload": known.workload,
        "accelerator": Path(known.accelerator).stem,
        "count": known.count,
        "best": known.best,
        "exact": known.closed,
        "near_share": known.near_share,
        "median_ratio": known.median_ratio,
    }


def _qualities(space: ScheduleSpace, known: Optimum, choices: Mapping[str, int | None]) -> dict[str, float]:
    """The quality of each baseline's choice (None: it has none), and ``random``, expected of a uniform draw in the
    sense of the geometric mean.
    """
    cycles = {name: None if i is None else int(_cycles(space, np.array([i]))[0]) for name, i in choices.items()}
    qualities = {name: metrics.pick_quality(known.best, own) for name, own in cycles.items()}
    return qualities | {"random": metrics.geometric_mean(known.best / known.valid_cycles)}


def _choices(space: ScheduleSpace, others: Mapping[str, Peer]) -> dict[str, NDArray[np.int64]]:
    """Each peer's first five legal schedules."""
    if not others:
        return {}

    given = picking.promising(space)
    return {
        name: peers.first_legal(space, given, peers.score(other, space, given), 5) for name, other in others.items()
    }


def _peer_result(
    space: ScheduleSpace,
    other: Peer,
    chosen: NDArray[np.int64],
    best: int,
    sample: NDArray[np.int64],
    truth: NDArray[np.int64],
) -> PeerResult:
    """A peer's figures: of its choice, and of its order of a valid sample (n,) with its true cycles (n,)."""
    cycles = _cycles(space, chosen)
    guess = -peers.score(other, space, space.record.features.candidates_at(space, sample))
    return PeerResult(
        metrics.top_k_quality(best, cycles, 1), metrics.top_k_quality(best, cycles, 5), Order.of(truth, guess)
    )


def _cycles(space: ScheduleSpace, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return space.measure(indices).cycles


def _lowers(space: ScheduleSpace, index: NDArray[np.int64]) -> bool:
    return len(index) > 0 and bool(space.measure(index).reason[0] == Reason.VALID)


def summarise(
    rows: list[TaskResult], truths: list[NDArray[np.bool_]], p_valid: list[NDArray[np.float32]]
) -> dict[str, Any]:
    """The figures of a set: see `metrics` for each. Validity is pooled over the tasks' samples, ranks are averaged."""
    counts = np.array([row.count for row in rows])

    def mean(name: str) -> float:
        return float(np.nanmean([getattr(row, name) for row in rows]))

    cycles = np.array([row.cycles for row in rows])
    best = np.array([row.best for row in rows])
    top5 = best / np.array([row.top5 for row in rows])
    order = _summarise_order([row.order for row in rows], counts)
    return {
        "tasks": len(rows),
        "exact": sum(row.exact for row in rows),
        "pick": summarise_picks(rows),
        "top5": metrics.summarise_quality([row.top5 for row in rows]),
        "top10": metrics.summarise_quality([row.top10 for row in rows]),
        "network_quality": metrics.network_quality(best, cycles, counts),
        "network_top5": metrics.network_quality(best, top5, counts),
        "baselines": {name: metrics.summarise_quality([row.baselines[name] for row in rows]) for name in BASELINES},
        "validity": metrics.validity_scores(np.concatenate(truths), np.concatenate(p_valid)),
        "kendall_tau": order["kendall_tau"],
        "pairwise_accuracy": order["pairwise_accuracy"],
        "order": order,
        "peers": {name: _summarise_peer([row.peers[name] for row in rows], counts) for name in rows[0].peers},
        "first_try_lowers": mean("first_lowers"),
        "first_try_lowers_with_closed_form": mean("first_legal_lowers"),
        "invalid_of_50": mean("invalid_of_50"),
        "fallbacks": sum(row.source == "fallback" for row in rows),
        "near_share": mean("near_share"),
        "median_ratio": mean("median_ratio"),
        "pick_seconds": {"mean": mean("seconds"), "max": max(row.seconds for row in rows)},
    }


def _summarise_order(orders: list[Order], counts: NDArray[np.int64]) -> dict[str, float]:
    """Figures of a set's orders; tasks without two valid candidates are left out.

    ``top1``, ``top5``: the top-k score of the TenSet paper and of TLP, see `metrics.network_quality`; ``peak1``,
    ``peak5``: TenSet's average peak score, weighted by candidates; the two others are means over tasks.
    """
    kept = [i for i, order in enumerate(orders) if order.candidates >= 2]
    if not kept:
        return dict.fromkeys(("top1", "top5", "peak1", "peak5", "kendall_tau", "pairwise_accuracy"), float("nan"))

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(orders[i], name) for i in kept], dtype=np.float64)

    weights = counts[kept]
    scores = {name: metrics.network_quality(column("best"), column(name), weights) for name in ("top1", "top5")}
    peaks = {name: float(np.average(column(name), weights=column("candidates"))) for name in ("peak1", "peak5")}
    means = {"kendall_tau": float(np.nanmean(column("tau"))), "pairwise_accuracy": float(column("pairwise").mean())}
    return scores | peaks | means


def _summarise_peer(results: list[PeerResult], counts: NDArray[np.int64]) -> dict[str, Any]:
    """Figures of a peer over a set's tasks."""
    return {
        "pick": metrics.summarise_quality([result.quality for result in results]),
        "top5": metrics.summarise_quality([result.top5 for result in results]),
        "order": _summarise_order([result.order for result in results], counts),
    }


def known_tasks(name: str, limit: int = 0) -> list[tuple[Task, Optimum]]:
    """The tasks of a frozen set with their optima, only ``limit`` of them, evenly spread (0: all).

    Raises:
        OneShotError: no table of optima for the set, or one of another version.
    """
    tasks = read_tasks(resources.find("evaluation", f"{name}.json"))
    path = resources.find("optima", f"{name}.jsonl")
    known = read_optima(path)
    missing = [task for task in tasks if task.id not in known or known[task.id].version != task.version]
    if missing:
        advice = f"make it anew: oneshot-ml2 optimum --tasks datasets/evaluation/{name}.json"
        raise OneShotError(f"{path}: {len(missing)} of {len(tasks)} tasks have no T* of {missing[0].version}; {advice}")
    return [(task, known[task.id]) for task in evenly(tasks, limit)]


def networks_of(weights: str | Path | None) -> dict[str, Predictor]:
    """By design the network that its tasks are evaluated with: see `picking.predictor_of`.

    Raises:
        WeightsError: no such weights, or unusable ones.
    """
    return {design: picking.predictor_of(weights, design=design) for design in DESIGNS}


def evaluate_set(
    name: str,
    networks: Mapping[str, Predictor],
    limit: int = 0,
    others: Mapping[str, Peer] = MappingProxyType({}),
    log: Path | None = None,
) -> dict[str, Any]:
    """The figures of a frozen set, and each task's (``rows``).

    Args:
        networks: by design, see :func:`networks_of`.
        limit: only so many tasks, evenly spread; 0: all.
        others: peers to compare with, see `peers.registry.load_peers`.
        log: JSON Lines that get every task when it is done; tasks that are there are not evaluated again.

    Raises:
        OneShotError: see `known_tasks`; a log of other weights or peers, or that another process writes.
    """
    tasks = known_tasks(name, limit)
    transplants = baselines.read_best_known(resources.find("evaluation", "best_known.json"))
    first, _ = tasks[0]
    picking.pick(first.workload, first.accelerator, networks[first.accelerator.design])  # the first pick compiles
    done: dict[str, _Evaluated] = {}
    results = []
    with ExitStack() as stack:
        opened = None
        if log is not None:
            digests = {design: digest(network) for design, network in networks.items()}
            versions = [version(design) for design in DESIGNS]
            header = {"format": FORMAT, "version": versions, "weights": digests, "peers": sorted(others)}
            opened = stack.enter_context(open_lines(log, _read, header))
            done = dict(opened.entries)
        for task, known in tqdm(tasks, desc=name, unit="task", disable=None):
            if task.id not in done:
                network = networks[task.accelerator.design]
                done[task.id] = evaluate_task(task, known, network, transplants, others)
                if opened is not None:
                    opened.append([_entry(task, done[task.id])])
            results.append(done[task.id])
    rows, truths, p_valid = (list(column) for column in zip(*results))
    return (
        {"set": name, "what": SETS[name]}
        | summarise(rows, truths, p_valid)
        | {"rows": [dataclasses.asdict(row) for row in rows]}
    )


def _entry(task: Task, evaluated: _Evaluated) -> dict[str, Any]:
    """A task as a line of the log."""
    row, truth, p_valid = evaluated
    return {"task": task.id, "row": dataclasses.asdict(row), "truth": truth.tolist(), "p_valid": p_valid.tolist()}


def _read(entry: dict[str, Any]) -> tuple[str, _Evaluated]:
    """The inverse of `_entry`, with the task's id; raises KeyError, TypeError or ValueError."""
    row = entry["row"]
    peers = {name: PeerResult(**(own | {"order": Order(**own["order"])})) for name, own in row["peers"].items()}
    result = TaskResult(**(row | {"order": Order(**row["order"]), "peers": peers}))
    truth, p_valid = np.array(entry["truth"], dtype=bool), np.array(entry["p_valid"], dtype=np.float32)
    if truth.ndim != 1 or truth.shape != p_valid.shape:
        raise ValueError("validity and its probability are of different schedules")
    return str(entry["task"]), (result, truth, p_valid)
