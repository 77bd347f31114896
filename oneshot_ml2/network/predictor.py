"""The networks: validity and latency of schedules, conditioned on the accelerator. Inference only, in numpy.

Two of the same form share their inputs: ``scan``, small enough for a whole space, and ``main``, which judges the best
of its scores. A schedule's latency is predicted as log(T / LB), LB its proven lower bound, by some weights beside a
closed-form guess that is one of their features (`FeatureSet.beside`). The first layer is split:
the part that sees the task is computed once for all schedules, so that a schedule costs only its own features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError, WeightsError
from oneshot_ml2.common.parallel import in_parallel, one_blas_thread
from oneshot_ml2.network import calibration
from oneshot_ml2.network.card import read_card
from oneshot_ml2.network.tensor_files import check_tensors, read_tensors, save_tensors
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick
    from oneshot_ml2.spaces.base import Candidates, FeatureSet
    from oneshot_ml2.spaces.protocols import Encoding
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload

FORMAT = "oneshot-ml2 predictor"
# The small network and the large one; the prefixes of their tensors.
NETWORKS = ("scan", "main")
# Outputs of each, in order.
OUTPUTS = ("validity logit", "log(T / LB)", "log variance")
# Rows at once: what is made of them stays in a core's cache.
_CHUNK = 1 << 11
# How far (in log2) a size may lie outside the trained range before a warning: a factor of 1.5.
_MARGIN = math.log2(1.5)
# What certain failure is worth in log T. A failed pick is twice as slow and more; risks are estimated from few trials.
_RISK = 2.0
# Spreads that schedules outside of the trained ranges are taken to be slower by: a quarter to a whole one pick as well.
_CAUTION = 0.5
# What the log T of the large one of both networks counts for in their mean where they know what modules wait for and
# have no advisers; elsewhere all count alike. Chosen on fresh tasks (docs/evaluation.md).
_KNOWING = 0.7
# And what the closed form of that waiting counts for beside them: each may be far off where the other is not.
_CLOSED_FORM = 0.3
# The most that is added to a log T for it.
_MOST_CAUTION = 50.0
_ADVICE = "use the weights that came with this version, or train new ones with `oneshot-ml2 train`"


@dataclass(frozen=True)
class Scores:
    """What the network says of n schedules.

    ``p_valid``: float32 (n,), probability of being valid; ``log_ratio``: float32 (n,), log(T / LB); ``spread``:
    float32 (n,), its standard deviation; ``bound``: float64 (n,), LB in cycles; ``risk``: float64 (n,), probability
    that a limit of a calibrated board is exceeded, part of ``p_valid`` already; None without a calibration;
    ``caution``: how many spreads slower than predicted a schedule is taken to be when it is ranked.
    """

    p_valid: NDArray[np.float32]
    log_ratio: NDArray[np.float32]
    spread: NDArray[np.float32]
    bound: NDArray[np.float64]
    risk: NDArray[np.float64] | None = None
    caution: float = 0.0

    def take(self, places: NDArray[np.int64]) -> Scores:
        """Those at some positions (m,)."""
        risk = None if self.risk is None else self.risk[places]
        columns = (self.p_valid[places], self.log_ratio[places], self.spread[places], self.bound[places])
        return Scores(*columns, risk, self.caution)

    @cached_property
    def cycles(self) -> NDArray[np.float64]:
        """Predicted cycles, float64 (n,); never below the proven bound."""
        return self.bound * np.exp(np.maximum(self.log_ratio, 0.0))

    @property
    def cost(self) -> NDArray[np.float64]:
        """What schedules are ranked by, float64 (n,): predicted cycles, more where a board's limits may be exceeded, or
        where the prediction is uncertain and ranked with caution.
        """
        cycles = self.cycles if self.risk is None else self.cycles * np.exp(_RISK * self.risk)
        # What is as uncertain as that is ranked last in any case.
        return cycles * np.exp(np.minimum(self.caution * self.spread, _MOST_CAUTION)) if self.caution else cycles

    def gap(self, other: Scores) -> NDArray[np.float64]:
        """How far the predicted log T of another network is from this one's, float64 (n,)."""
        return np.abs(np.log(self.cycles) - np.log(other.cycles))

    def with_both(
        self,
        other: Scores,
        knowing: bool = False,
        advice: Sequence[Scores] = (),
        guess: NDArray[np.float64] | None = None,
    ) -> Scores:
        """Of legal schedules the mean of this network and another one of the same schedules, ranked with caution.

        ``knowing``: they know what modules wait for: the large one, this, counts for more. ``advice``: of further large
        networks; then all count alike. ``guess``: cycles (n,) by the closed form that knows it, too, if that votes.
        """
        votes = [self, other, *advice]
        shares = [_KNOWING, 1 - _KNOWING] if knowing and not advice else [1 / len(votes)] * len(votes)
        ratio = sum(np.float32(share) * np.maximum(vote.log_ratio, 0.0) for share, vote in zip(shares, votes))
        if guess is not None:
            told = np.maximum(np.log(guess / self.bound), 0.0).astype(np.float32)
            ratio = np.float32(1 - _CLOSED_FORM) * ratio + np.float32(_CLOSED_FORM) * told
        spread = np.mean([vote.spread for vote in votes], axis=0)
        p_valid = np.ones_like(self.p_valid) if self.risk is None else (1.0 - self.risk).astype(np.float32)
        return Scores(p_valid, ratio, spread, self.bound, self.risk, _CAUTION)


@dataclass(frozen=True)
class Predictor:
    """Weights of the networks and their card.

    Attributes:
        tensors: ``mean``, ``scale`` (F,): standardisation of the features that they see; ``low``, ``high`` (T,):
            ranges of those of tasks in training; ``<network>.<i>.weight`` (out, in) and ``<network>.<i>.bias`` of each
            of `NETWORKS`, the last with as many outputs as `OUTPUTS`; with a calibration those of
            `Calibration.to_tensors`. All float32.
        card: the model card, JSON-able.
        kind: of the schedule spaces that they know.
        version: of the features that they see; None: the space's ``FEATURE_VERSION``.
    """

    tensors: dict[str, NDArray[np.float32]]
    card: dict[str, Any]
    kind: str = DEFAULT_KIND
    version: int | None = None

    def check_space(self, space: ScheduleSpace) -> None:
        """Raise OneShotError unless the space is of the kind that these weights know."""
        if space.kind != self.kind:
            shipped = space.record.weights.get(space.accelerator.design)
            hint = f": the shipped weights {shipped!r} do" if shipped is not None else ""
            raise OneShotError(f"these weights know the schedule space {self.kind!r}, not {space.kind!r}{hint}")

    @property
    def ranks_legal(self) -> bool:
        """Whether their picks are always those of `picking.rank_legal`, as their training's settings say."""
        return bool(self.card.get("settings", {}).get("ranks_legal"))

    @property
    def advisers(self) -> list[str]:
        """Shipped weights whose large networks have a vote, too, when schedules known to be legal are judged.

        Raises:
            WeightsError: the card names them in another way.
        """
        named = self.card.get("advisers", [])
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise WeightsError(f"the model card's 'advisers' is {named!r}; use the card that came with the weights")
        return named

    @cached_property
    def picks(self) -> dict[tuple[Workload, Accelerator], Pick]:
        """What `picking.pick_all` has picked by these weights, by workload and accelerator."""
        return {}

    @cached_property
    def features(self) -> Encoding:
        """The features of :attr:`kind`."""
        return space_kind(self.kind).features

    @cached_property
    def seen(self) -> FeatureSet:
        """The features that the weights see."""
        return self.features.FEATURE_SETS[self.features.FEATURE_VERSION if self.version is None else self.version]

    @cached_property
    def calibration(self) -> calibration.Calibration | None:
        """What the weights were told of one board by `finetune`; None for those of any accelerator."""
        return calibration.Calibration.from_tensors(self.tensors, self.kind)

    @cached_property
    def _bare(self) -> Predictor:
        """The networks without the calibration."""
        return replace(self, tensors=bare(self.tensors))

    def told_as(self, other: Predictor) -> Predictor:
        """These weights with the calibration of other ones: its figures are the board's, not the network's."""
        own = {name: tensor for name, tensor in other.tensors.items() if name.startswith(calibration.PREFIX)}
        return replace(self, tensors=bare(self.tensors) | own) if own else self

    @cached_property
    def _layers(self) -> dict[str, list[NDArray[np.float32]]]:
        """Each network's layers (inputs + 1, outputs), the last row the bias, the standardisation in the first."""
        networks = {}
        for network in NETWORKS:
            names = [f"{network}.{i}" for i in range(depth(self.tensors, network))]
            layers = [np.vstack([self.tensors[f"{name}.weight"].T, self.tensors[f"{name}.bias"]]) for name in names]
            first = layers[0].astype(np.float64)
            first[:-1] /= self.tensors["scale"].astype(np.float64)[:, None]
            first[-1] -= self.tensors["mean"].astype(np.float64) @ first[:-1]
            layers[0] = first.astype(np.float32)
            networks[network] = layers
        return networks

    def outside(self, space: ScheduleSpace) -> list[str]:
        """A line for each property of the accelerator or the workload far outside what the network was trained on."""
        self.check_space(space)
        row = self.features.task_features(space, self.seen.version)
        found = []
        # Cards from before there were designs say nothing of them.
        told, design = self.card.get("designs"), space.accelerator.design
        designs = told if isinstance(told, list) else ["chisel"]
        if design not in designs:
            found.append(
                f"design is {design}; trained on {' and '.join(map(str, designs))}: what is predicted beside that "
                f"design's closed form may be poor"
            )
        for name, (value, low, high) in self._ranges(row).items():
            if not low - _MARGIN <= value <= high + _MARGIN:
                size, least, most = (_size_of(x) for x in (value, low, high))
                found.append(f"{name} is {size}; trained on {least} to {most}: the prediction may be poor")
        return found

    def octaves_outside(self, space: ScheduleSpace) -> float:
        """How far the accelerator or the workload lies outside of what the network was trained on, in the property in
        which it is most: powers of two; 0 within.
        """
        row = self.features.task_features(space, self.seen.version)
        return max(max(low - value, value - high, 0.0) for value, low, high in self._ranges(row).values())

    def _ranges(self, row: NDArray[np.float32]) -> dict[str, tuple[float, float, float]]:
        """Of each property of accelerator and workload log2(1 + it), and the least and most that were trained on."""
        given = self.features.accelerator_and_workload(row, self.seen.version)
        places = {name: self.seen.task.index(name) for name in given}
        low, high = self.tensors["low"], self.tensors["high"]
        return {name: (given[name], float(low[i]), float(high[i])) for name, i in places.items()}

    def score(self, space: ScheduleSpace, indices: NDArray[np.int64], network: str = "main") -> Scores:
        """Scores of the schedules at ``indices`` (n,) of a space by one of `NETWORKS`.

        Raises:
            OneShotError: a space of another kind.
        """
        self.check_space(space)
        if self.calibration is not None:
            return self.judge(space, self.features.candidates_at(space, indices), network)
        encoder = self.features.Encoder.of(space, self.seen.version)
        indices = np.ascontiguousarray(indices, dtype=np.int64)
        bound = np.empty(len(indices))

        def fill(begin: int, end: int, out: NDArray[np.float32]) -> None:
            # Part by part: what is read again is still in the cache.
            given = encoder.candidates_at(indices[begin:end])
            bound[begin:end] = given.bound
            encoder.encode(given, out)

        return self._scores(network, self.features.task_features(space, self.seen.version), bound, fill)

    def judge(self, space: ScheduleSpace, given: Candidates, network: str = "main") -> Scores:
        """Scores of candidates of a space by one of `NETWORKS`.

        Raises:
            OneShotError: a space of another kind.
        """
        self.check_space(space)
        if self.calibration is not None:
            board = self.calibration.board(space)
            there = self.features.Encoder.of(board).candidates(given.indices, given.values)
            return _corrected(self.calibration, board, there, self._bare.judge(board, there, network))
        encoder = self.features.Encoder.of(space, self.seen.version)

        def fill(begin: int, end: int, out: NDArray[np.float32]) -> None:
            encoder.encode(given.take(slice(begin, end)), out)

        task = self.features.task_features(space, self.seen.version)
        return self._scores(network, task, given.bound.copy(), fill)

    def _scores(
        self,
        network: str,
        task: NDArray[np.float32],
        bound: NDArray[np.float64],
        fill: Callable[[int, int, NDArray[np.float32]], None],
    ) -> Scores:
        """Scores of n schedules with the bounds (n,), which ``fill(begin, end, out)`` puts in place, and features."""
        first, *others, last = self._layers[network]
        # What all schedules share is the bias of their first layer.
        own = np.vstack([first[len(task) : -1], task @ first[: len(task)] + first[-1]])
        layers = (own, *others, last)
        outputs = np.empty((len(bound), len(OUTPUTS)), dtype=np.float32)
        beside = self.seen.schedule.index(self.seen.beside) if self.seen.beside else None

        def part(begin: int, end: int) -> None:
            rows = min(end - begin, _CHUNK)
            # A last column of ones in each layer's inputs brings its bias.
            features, *hidden = (np.ones((rows, len(weight)), dtype=np.float32) for weight in layers)
            for start in range(begin, end, _CHUNK):
                n = min(_CHUNK, end - start)
                fill(start, start + n, features[:n])
                x = features[:n]
                for weight, buffer in zip(layers[:-1], hidden, strict=True):
                    np.matmul(x, weight, out=buffer[:n, :-1])
                    x = np.maximum(buffer[:n], 0.0, out=buffer[:n])
                out = outputs[start : start + n]
                np.matmul(x, last, out=out)
                if beside is not None:
                    out[:, OUTPUTS.index("log(T / LB)")] += np.float32(math.log(2)) * features[:n, beside]

        with one_blas_thread():
            in_parallel(part, len(bound))
        logit, log_ratio, log_variance = outputs.T
        p_valid = 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))
        spread = np.exp(0.5 * np.clip(log_variance, -30.0, 30.0))
        return Scores(p_valid, log_ratio.copy(), spread, bound)

    def save(self, path: str | Path) -> None:
        """Write ``path`` (safetensors) and its card beside it (``.json``), each whole or not at all.

        Raises:
            WeightsError: the files cannot be written.
        """
        head = {"format": FORMAT, "space": self.kind, "feature_version": str(self.seen.version)}
        if self.calibration is not None:
            head["calibration_version"] = str(calibration.VERSION)
        save_tensors(Path(path), self.tensors, head, self.card)

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read weights (safetensors) and the card beside them, if there is one.

        Raises:
            WeightsError: no such file, a truncated or foreign one, or weights of another feature version.
        """
        path = Path(path)
        head, tensors = read_tensors(path, FORMAT, _ADVICE)
        kind, version = head.get("space", DEFAULT_KIND), head.get("feature_version")
        try:
            features = space_kind(kind).features
        except OneShotError as error:
            text = f"{path}: weights of a schedule space {kind!r} that this version has not; {_ADVICE}"
            raise WeightsError(text) from error
        known = {str(known): known for known in features.FEATURE_SETS}
        if version not in known:
            raise WeightsError(
                f"{path}: weights of feature version {version}, this version has {' and '.join(known)}; {_ADVICE}"
            )
        _check_calibration(path, head.get("calibration_version"), tensors, kind)
        _check_shapes(path, bare(tensors), features.FEATURE_SETS[known[version]])
        card = read_card(path)
        if card.get("feature_version", known[version]) != known[version]:
            raise WeightsError(f"{path}: the card beside it is that of other weights; use its own, or remove it")
        return cls(tensors, card, kind, known[version])


def _size_of(logarithm: float) -> str:
    """A size by the feature log2(1 + size): to a tenth where it is small."""
    size = 2**logarithm - 1
    return f"{round(size, 1):g}" if size < 10 else str(round(size))


def _corrected(known: calibration.Calibration, board: ScheduleSpace, given: Candidates, scores: Scores) -> Scores:
    """The networks' scores of candidates with what a calibration adds."""
    traffic = calibration.traffic_of(board, given)
    added = known.added(calibration.given_of(board, given, traffic, scores.cycles))
    risk = known.risk(traffic)
    ratio = np.maximum(scores.log_ratio, 0.0) + added.astype(np.float32)
    p_valid = scores.p_valid * (1.0 - risk).astype(np.float32)
    return Scores(p_valid, ratio.astype(np.float32), scores.spread, scores.bound, risk)


def digest(network: Predictor) -> str:
    """SHA-256 of weights."""
    text = hashlib.sha256()
    for name, tensor in sorted(network.tensors.items()):
        text.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    return text.hexdigest()


def bare(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Weights without a calibration."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(calibration.PREFIX)}


def depth(tensors: Mapping[str, Any], network: str) -> int:
    """How many layers a network has among named tensors."""
    return sum(name.startswith(f"{network}.") and name.endswith(".weight") for name in tensors)


def _check_calibration(path: Path, version: str | None, tensors: dict[str, NDArray[Any]], kind: str) -> None:
    """Raise WeightsError unless the calibration among the tensors, if there is one, is of this version and possible."""
    try:
        found = calibration.Calibration.from_tensors(tensors, kind)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; make them anew with `oneshot-ml2 finetune`") from error
    wanted = None if found is None else str(calibration.VERSION)
    if version != wanted:
        raise WeightsError(
            f"{path}: weights with a calibration of version {version}, this version has {wanted}; "
            "make them anew with `oneshot-ml2 finetune`"
        )


def _check_shapes(path: Path, tensors: dict[str, NDArray[Any]], known: FeatureSet) -> None:
    """Raise WeightsError unless the tensors make up `NETWORKS` of the features that are known and `OUTPUTS`."""
    features, tasks = len(known.all), len(known.task)
    shapes: dict[str, tuple[int, ...]] = {"mean": (features,), "scale": (features,), "low": (tasks,), "high": (tasks,)}
    for network in NETWORKS:
        layers = depth(tensors, network)
        if layers < 2:
            raise WeightsError(f"{path}: {layers} layers of the network {network!r}, at least 2 are needed; {_ADVICE}")
        width = features
        for i in range(layers):
            name = f"{network}.{i}"
            out = len(OUTPUTS) if i == layers - 1 else tensors.get(f"{name}.bias", np.empty(0)).size
            shapes |= {f"{name}.weight": (out, width), f"{name}.bias": (out,)}
            width = out
    check_tensors(path, tensors, shapes, _ADVICE)
