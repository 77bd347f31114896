"""The task network: T* of a layer on an accelerator, without a search of its space. Inference only, in numpy.

What stands in for the space is its closed forms: they are computed once for all accelerators that differ in their SRAMs
alone, and tell which schedule is the best of those that each holds. The network, of these and of the sizes, says how
far T* is from that schedule's guess; no schedule is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.common.grouping import equal_places
from oneshot_ml2.common.parallel import one_blas_thread
from oneshot_ml2.network.card import read_card
from oneshot_ml2.network.predictor import depth
from oneshot_ml2.network.tensor_files import check_tensors, read_tensors, save_tensors
from oneshot_ml2.network.weights import find_pretrained
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind

if TYPE_CHECKING:
    from oneshot_ml2.spaces.protocols import Families, ScheduleFamily
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload

FORMAT = "oneshot-ml2 task network"
NAME = "tasks"
# The prefix of the networks' tensors.
NETWORK = "task"
# Predictions are kept within this of the closed form, in log T: no label was farther.
_FARTHEST = 2.0
_CHUNK = 1 << 12
_ADVICE = "use the weights that came with this version, or train new ones with `python train/tasks.py`"


@dataclass(frozen=True)
class TaskNetwork:
    """Weights of the task network and their card.

    Attributes:
        tensors: ``mean``, ``scale``, ``low``, ``high`` (F,): of the features in training; ``task<k>.<i>.weight``
            (out, in) and ``task<k>.<i>.bias`` of each of some networks, whose mean is predicted. All float32.
        card: the model card, JSON-able.
        kind: of the schedule spaces whose T* it tells.
    """

    tensors: dict[str, NDArray[np.float32]]
    card: dict[str, Any]
    kind: str = DEFAULT_KIND

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return hashlib.sha256(b"".join(tensor.tobytes() for _, tensor in sorted(self.tensors.items()))).hexdigest()

    @cached_property
    def _networks(self) -> list[list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        """Weights (in, out) and biases of each network's layers, the standardisation in the first."""
        scale, mean = self.tensors["scale"].astype(np.float64), self.tensors["mean"].astype(np.float64)
        networks = []
        for name in networks_of(self.tensors):
            names = [f"{name}.{i}" for i in range(depth(self.tensors, name))]
            layers = [(self.tensors[f"{layer}.weight"].T, self.tensors[f"{layer}.bias"]) for layer in names]
            first = layers[0][0].astype(np.float64) / scale[:, None]
            bias = layers[0][1] - mean @ first
            networks.append([(first.astype(np.float32), bias.astype(np.float32)), *layers[1:]])
        return networks

    def log_ratio(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """log(T* / reference) of features (n, F), float64 (n,)."""
        out = np.zeros(len(features))
        with one_blas_thread():
            for begin in range(0, len(features), _CHUNK):
                # What lies outside of the trained ranges is taken for what lies at their ends.
                given = np.clip(features[begin : begin + _CHUNK], self.tensors["low"], self.tensors["high"])
                for *hidden, (last, offset) in self._networks:
                    x = given
                    for weight, bias in hidden:
                        x = np.maximum(x @ weight + bias, 0.0)
                    out[begin : begin + _CHUNK] += (x @ last + offset)[:, 0] / len(self._networks)
        return np.clip(out, -_FARTHEST, _FARTHEST)

    def least_of(
        self, family: ScheduleFamily, workload: Workload, members: Sequence[Accelerator]
    ) -> NDArray[np.float64]:
        """Predicted T* of a family's members, cycles, float64 (m,); infinite where no schedule is legal."""
        record = space_kind(self.kind)
        closed = family.closed(members)
        legal = np.flatnonzero(~np.isnan(closed[:, 0, 0]))
        cycles = np.full(len(members), np.inf)
        if len(legal):
            nests = record.families.nests(workload, members)[legal]
            ratio = self.log_ratio(record.tasks.encode(nests, closed[legal]))
            cycles[legal] = record.tasks.reference(closed[legal]) * np.exp(ratio)
        return cycles

    def least(self, workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Predicted T* of a workload on accelerators, cycles, float64 (m,); infinite where no schedule is legal.

        Raises:
            NoSchedule: a workload that VTA cannot address.
        """
        families: Families = space_kind(self.kind).families
        cycles = np.full(len(accelerators), np.inf)
        for places in by_shape(accelerators):
            same = [accelerators[place] for place in places]
            for members, family in families.Family.all_of(workload, same):
                cycles[[places[i] for i in members]] = self.least_of(family, workload, [same[i] for i in members])
        return cycles

    def save(self, path: str | Path) -> None:
        """Write ``path`` (safetensors) and its card beside it (``.json``), each whole or not at all.

        Raises:
            WeightsError: the files cannot be written.
        """
        head = {"format": FORMAT, "space": self.kind, "feature_version": str(space_kind(self.kind).tasks.VERSION)}
        save_tensors(Path(path), self.tensors, head, self.card)

    @classmethod
    def load(cls, path: str | Path) -> TaskNetwork:
        """Read weights and the card beside them.

        Raises:
            WeightsError: no such file, a truncated or foreign one, or weights of another feature version.
        """
        path = Path(path)
        head, tensors = read_tensors(path, FORMAT, _ADVICE)
        record = space_kind(DEFAULT_KIND)
        if head.get("space") != DEFAULT_KIND or head.get("feature_version") != str(record.tasks.VERSION):
            raise WeightsError(f"{path}: a task network of another space or feature version; {_ADVICE}")
        _check_shapes(path, tensors, len(record.tasks.FEATURES))
        return cls(tensors, read_card(path))


def by_shape(accelerators: Sequence[Accelerator]) -> list[list[int]]:
    """Positions of the accelerators of each block and batch."""
    return equal_places((accelerator.log_batch, accelerator.log_block) for accelerator in accelerators)


def networks_of(tensors: Mapping[str, NDArray[Any]]) -> list[str]:
    """Prefixes of the networks among named tensors, in order."""
    found = {name.partition(".")[0] for name in tensors if name.startswith(NETWORK)}
    return sorted(found, key=lambda name: (len(name), name))


def _check_shapes(path: Path, tensors: dict[str, NDArray[Any]], features: int) -> None:
    """Raise WeightsError unless the tensors make up networks of so many features and one output."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "scale", "low", "high"), (features,))
    for name in networks_of(tensors) or [f"{NETWORK}0"]:
        layers, width = depth(tensors, name), features
        for i in range(max(1, layers)):
            out = 1 if i >= layers - 1 else tensors.get(f"{name}.{i}.bias", np.empty(0)).size
            shapes |= {f"{name}.{i}.weight": (out, width), f"{name}.{i}.bias": (out,)}
            width = out
    check_tensors(path, tensors, shapes, _ADVICE)


@lru_cache(maxsize=4)
def load_tasks(weights: str | Path = NAME) -> TaskNetwork:
    """The task network of a name among the shipped weights, or of a file; loaded once per process.

    Raises:
        WeightsError: no such weights, or unusable ones.
    """
    return TaskNetwork.load(weights if str(weights).endswith(".safetensors") else find_pretrained(str(weights)))
