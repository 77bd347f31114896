"""The networks: validity and latency of schedules, conditioned on the accelerator. Inference only, in numpy.

Two of the same form share their inputs: ``scan``, small enough for a whole space, and ``main``, which judges the best
of its scores. A schedule's latency is predicted as log(T / LB), LB its proven lower bound. The first layer is split:
the part that sees the task is computed once for all schedules, so that a schedule costs only its own features.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.encoding import Encoding, encoding, kinds, weights_of
from oneshot_ml2.errors import OneShotError, WeightsError
from oneshot_ml2.files import write_whole

if TYPE_CHECKING:
    from oneshot_ml2.encode import Candidates
    from oneshot_ml2.schedule import ScheduleSpace

FORMAT = "oneshot-ml2 predictor"
# The small network and the large one; the prefixes of their tensors.
NETWORKS = ("scan", "main")
# Outputs of each, in order.
OUTPUTS = ("validity logit", "log(T / LB)", "log variance")
_CHUNK = 1 << 13
# How far (in log2) a size may lie outside the trained range before a warning: a factor of 1.5.
_MARGIN = math.log2(1.5)
_ADVICE = "use the weights that came with this version, or train new ones with `oneshot-ml2 train`"


@dataclass(frozen=True)
class Scores:
    """What the network says of n schedules.

    ``p_valid``: float32 (n,), probability of being valid; ``log_ratio``: float32 (n,), log(T / LB); ``spread``:
    float32 (n,), its standard deviation; ``bound``: float64 (n,), LB in cycles.
    """

    p_valid: NDArray[np.float32]
    log_ratio: NDArray[np.float32]
    spread: NDArray[np.float32]
    bound: NDArray[np.float64]

    def take(self, places: NDArray[np.int64]) -> Scores:
        """Those at some positions (m,)."""
        return Scores(self.p_valid[places], self.log_ratio[places], self.spread[places], self.bound[places])

    @cached_property
    def cycles(self) -> NDArray[np.float64]:
        """Predicted cycles, float64 (n,); never below the proven bound."""
        return self.bound * np.exp(np.maximum(self.log_ratio, 0.0))


@dataclass(frozen=True)
class Predictor:
    """Weights of the networks and their card.

    Attributes:
        tensors: ``mean``, ``scale`` (F,): standardisation of the space's ``FEATURES``; ``low``, ``high`` (T,): ranges
            of its ``TASK_FEATURES`` in training; ``<network>.<i>.weight`` (out, in) and ``<network>.<i>.bias`` of each
            of `NETWORKS`, the last with as many outputs as `OUTPUTS`. All float32.
        card: the model card, JSON-able.
        kind: of the schedule spaces that they know.
    """

    tensors: dict[str, NDArray[np.float32]]
    card: dict[str, Any]
    kind: str = "full"

    def check_space(self, space: ScheduleSpace) -> None:
        """Raise OneShotError unless the space is of the kind that these weights know."""
        if space.kind != self.kind:
            hint = f": the shipped weights {weights_of(space.kind)!r} do" if space.kind in kinds() else ""
            raise OneShotError(
                f"these weights know the schedule space {self.kind!r}, not {space.kind!r}{hint}"
            )

    @cached_property
    def features(self) -> Encoding:
        """The features of :attr:`kind`."""
        return encoding(self.kind)

    @cached_property
    def _layers(self) -> dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        """(weight (in, out), bias) of each network's layers, the standardisation folded into the first."""
        networks = {}
        for network in NETWORKS:
            names = [f"{network}.{i}" for i in range(depth(self.tensors, network))]
            layers = [(self.tensors[f"{name}.weight"].T, self.tensors[f"{name}.bias"]) for name in names]
            weight = layers[0][0].astype(np.float64) / self.tensors["scale"].astype(np.float64)[:, None]
            bias = layers[0][1] - self.tensors["mean"].astype(np.float64) @ weight
            layers[0] = (weight.astype(np.float32), bias.astype(np.float32))
            networks[network] = [(np.ascontiguousarray(weight), bias) for weight, bias in layers]
        return networks

    def outside(self, space: ScheduleSpace) -> list[str]:
        """A line for each property of the accelerator or the workload far outside what the network was trained on."""
        self.check_space(space)
        row = self.features.task_features(space)
        found = []
        for name, value in self.features.accelerator_and_workload(row).items():
            i = self.features.TASK_FEATURES.index(name)
            low, high = float(self.tensors["low"][i]), float(self.tensors["high"][i])
            if not low - _MARGIN <= value <= high + _MARGIN:
                size, least, most = (round(2**x - 1) for x in (value, low, high))
                found.append(f"{name} is {size}; trained on {least} to {most}: the prediction may be poor")
        return found

    def score(self, space: ScheduleSpace, indices: NDArray[np.int64], network: str = "main") -> Scores:
        """Scores of the schedules at ``indices`` (n,) of a space by one of `NETWORKS`.

        Raises:
            OneShotError: a space of another kind.
        """
        self.check_space(space)
        given = self.features.candidates_at(space, np.ascontiguousarray(indices, dtype=np.int64))
        return self.judge(space, given, network)

    def judge(self, space: ScheduleSpace, given: Candidates, network: str = "main") -> Scores:
        """Scores of candidates of a space by one of `NETWORKS`.

        Raises:
            OneShotError: a space of another kind.
        """
        self.check_space(space)
        encoder = self.features.Encoder.of(space)
        task = self.features.task_features(space)
        (first, bias), *rest = self._layers[network]
        shared = task @ first[: len(task)] + bias
        own = np.ascontiguousarray(first[len(task) :])
        outputs = np.empty((len(given), len(OUTPUTS)), dtype=np.float32)
        rows = min(len(given), _CHUNK)
        features = np.empty((rows, len(own)), dtype=np.float32)
        hidden = [np.empty((rows, len(offset)), dtype=np.float32) for offset in (bias, *(b for _, b in rest[:-1]))]
        workers = os.cpu_count() or 1

        def encode_part(begin: int, end: int, start: int) -> None:
            encoder.encode(given.take(slice(begin, end)), features[begin - start : end - start])

        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(given), _CHUNK):
                n = min(_CHUNK, len(given) - start)
                cuts = np.linspace(start, start + n, workers + 1).astype(int)
                list(pool.map(encode_part, cuts[:-1], cuts[1:], [start] * workers))
                x = np.matmul(features[:n], own, out=hidden[0][:n])
                x += shared
                np.maximum(x, 0.0, out=x)
                for (weight, offset), buffer in zip(rest[:-1], hidden[1:], strict=True):
                    x = np.matmul(x, weight, out=buffer[:n])
                    x += offset
                    np.maximum(x, 0.0, out=x)
                weight, offset = rest[-1]
                outputs[start : start + n] = x @ weight + offset
        logit, log_ratio, log_variance = outputs.T
        p_valid = 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))
        spread = np.exp(0.5 * np.clip(log_variance, -30.0, 30.0))
        return Scores(p_valid, log_ratio.copy(), spread, given.bound.copy())

    def save(self, path: str | Path) -> None:
        """Write ``path`` (safetensors) and its card beside it (``.json``), each whole or not at all.

        Raises:
            WeightsError: the files cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path).with_suffix(".safetensors")
        head = {"format": FORMAT, "space": self.kind, "feature_version": str(self.features.FEATURE_VERSION)}
        content = save({name: np.ascontiguousarray(t) for name, t in self.tensors.items()}, metadata=head)
        text = json.dumps(self.card, indent=1, sort_keys=True) + "\n"
        for target, data in ((path, content), (path.with_suffix(".json"), text.encode())):
            write_weights(target, data)

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read weights (safetensors) and the card beside them, if there is one.

        Raises:
            WeightsError: no such file, a truncated or foreign one, or weights of another feature version.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path}: not weights (*.safetensors); {_ADVICE}")
        try:
            with safe_open(str(path), framework="numpy") as file:
                head = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError) as error:
            raise WeightsError(f"cannot read weights {path}: {error}; {_ADVICE}") from error
        if head.get("format") != FORMAT:
            raise WeightsError(f"{path}: no weights of oneshot-ml2; {_ADVICE}")
        kind, version = head.get("space", "full"), head.get("feature_version")
        if kind not in kinds():
            raise WeightsError(f"{path}: weights of a schedule space {kind!r} that this version has not; {_ADVICE}")
        features = encoding(kind)
        if version != str(features.FEATURE_VERSION):
            raise WeightsError(
                f"{path}: weights of feature version {version}, this version has {features.FEATURE_VERSION}; {_ADVICE}"
            )
        _check_shapes(path, tensors, features)
        card_path = path.with_suffix(".json")
        try:
            card = json.loads(card_path.read_text(encoding="utf-8")) if card_path.exists() else {}
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot read the model card {card_path}: {error}; {_ADVICE}") from error
        if not isinstance(card, dict):
            raise WeightsError(f"{card_path}: not a model card; {_ADVICE}")
        return cls(tensors, card, kind)


def depth(tensors: Mapping[str, Any], network: str) -> int:
    """How many layers a network has among named tensors."""
    return sum(name.startswith(f"{network}.") and name.endswith(".weight") for name in tensors)


def _check_shapes(path: Path, tensors: dict[str, NDArray[Any]], encoding: Encoding) -> None:
    """Raise WeightsError unless the tensors make up `NETWORKS` of an encoding's features and `OUTPUTS`."""
    features, tasks = len(encoding.FEATURES), len(encoding.TASK_FEATURES)
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
    for name in set(shapes) | set(tensors):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shapes.get(name) or tensor.dtype != np.float32:
            raise WeightsError(f"{path}: tensor {name!r} does not fit the network; {_ADVICE}")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{path}: tensor {name!r} holds values that are not finite; {_ADVICE}")


def write_weights(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in a folder that is made if need be.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error
