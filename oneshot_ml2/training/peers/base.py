"""What a predictor of others is: its record, its settings, and what it is trained on.

Each gives schedules a score, higher for faster. Validity is not theirs to tell: their training sees valid schedules
alone, and the closed form passes over what would not lower, as it does for the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """Where a network's training is kept between epochs (``path``), of which run (``run``), and who hears of it."""

    path: Path
    run: str
    report: Report


@dataclass(frozen=True)
class Settings:
    """What the peers' training is decided by; `train/peers.toml` explains each.

    Attributes:
        every: one task in so many of the corpora is used; ``samples``: at most so many valid samples of each.
        one_shot_*: epochs, batch, learning rate of One-Shot Tuner's network.
        tenset_*: epochs, tasks in a batch, samples of each, learning rate of the MLP.
        xgboost_rounds, xgboost_depth, xgboost_rate: trees, their depth, the learning rate.
        seed: of everything random.
    """

    every: int = 1
    samples: int = 192
    one_shot_epochs: int = 12
    one_shot_batch: int = 512
    one_shot_rate: float = 3e-4
    tenset_epochs: int = 40
    tenset_tasks: int = 8
    tenset_samples: int = 64
    tenset_rate: float = 7e-4
    xgboost_rounds: int = 300
    xgboost_depth: int = 8
    xgboost_rate: float = 0.2
    seed: int = 1

    def __post_init__(self) -> None:
        low = {name: value for name, value in dataclasses.asdict(self).items() if name != "seed" and value <= 0}
        if low or self.tenset_samples < 2:
            raise OneShotError(f"peers' settings: {', '.join(low) or 'tenset_samples'}: too small")


@dataclass(frozen=True)
class Rows:
    """Valid samples of tasks. Task t owns the rows offsets[t] to offsets[t + 1].

    ``features``: float32 (n, all features); ``own``: float32 (n, knobs + 8), see `inputs.own_inputs`; ``cycles``:
    float64 (n,); ``work``: float64 (T,), operations of each task; ``digests``: of the corpora.
    """

    features: NDArray[np.float32]
    own: NDArray[np.float32]
    offsets: NDArray[np.int64]
    cycles: NDArray[np.float64]
    work: NDArray[np.float64]
    digests: list[str]

    def __len__(self) -> int:
        return len(self.work)

    @property
    def task_of(self) -> NDArray[np.int64]:
        """The task of each row, int64 (n,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def speed(self) -> NDArray[np.float64]:
        """T* / T of each row, T* the task's best row, float64 (n,)."""
        best = np.minimum.reduceat(self.cycles, self.offsets[:-1])
        return best[self.task_of] / self.cycles


class Peer(Protocol):
    """A trained predictor."""

    def score(self, features: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (n,), higher for faster, of all features (n, F) and `inputs.own_inputs` (n, knobs + 8)."""
        ...


@dataclass(frozen=True)
class PeerKind:
    """A predictor of others, registered by the file of this folder that has it.

    Attributes:
        name: of its files; ``label``: in tables.
        ending: of the file of its weights.
        train: a `Peer` from rows; goes on from a checkpoint of the same run.
        content: the file that keeps such a peer.
        load: the peer of such a file; OneShotError, OSError, SafetensorError, RuntimeError or ValueError if it cannot.
    """

    name: str
    label: str
    ending: str
    train: Callable[[Rows, Settings, Progress], Peer]
    content: Callable[[Any], bytes]
    load: Callable[[Path], Peer]

    @property
    def file(self) -> str:
        """The name of the file of its weights."""
        return f"{self.name}.{self.ending}"
