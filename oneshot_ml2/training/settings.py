"""Settings of a training run, from TOML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.reading import read_toml


@dataclass(frozen=True)
class Settings:
    """What a training run is decided by; `train/pretrain.toml` explains each.

    Attributes:
        scan, main: widths of the hidden layers of the small network and of the large one.
        epochs: passes over the tasks.
        tasks_per_batch, samples_per_task: a batch is so many samples of each of so many tasks.
        learning_rate, weight_decay, warmup: AdamW; the rate rises over ``warmup`` (a share of all steps) and falls as
            a cosine.
        average: decay of the exponential average of the weights that is kept and shipped.
        huber: residual in log(T / LB) beyond which the loss grows linearly.
        fast: weight of a valid sample is (T* / T) to this power, T* the task's best sample.
        validity_weight, rank_weight, spread_weight: of these losses beside the Huber loss.
        temperature: scale of log-latency differences in the ranking loss.
        validity_samples: further schedules of each task whose validity, told by lowering them, is trained on: half of
            them uniform, half drawn towards a small closed-form bound, where what looks fast is mostly invalid.
        task_share: share of the tasks that is trained on, drawn at random.
        held_workloads: share of the workload shapes kept for validation.
        held_accelerators: number of accelerators kept for validation.
        checkpoint_minutes: time between checkpoints.
        ranks_legal: whether picks take the best of the schedules that the closed form calls legal, by both networks, as
            those of other weights do outside of their trained ranges only.
        waits: whether the features tell what modules wait for, and latencies are predicted beside that closed form's.
        start: shipped weights that training starts from, whose hidden layers are as wide; empty: from random ones.
        seed: of everything random.
    """

    scan: tuple[int, ...] = (48, 32)
    main: tuple[int, ...] = (256, 256, 128)
    epochs: int = 70
    tasks_per_batch: int = 16
    samples_per_task: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.02
    average: float = 0.998
    huber: float = 0.1
    fast: float = 2.0
    validity_weight: float = 0.1
    rank_weight: float = 0.1
    spread_weight: float = 0.01
    temperature: float = 0.05
    validity_samples: int = 256
    task_share: float = 1.0
    held_workloads: float = 0.06
    held_accelerators: int = 2
    checkpoint_minutes: float = 2.0
    ranks_legal: bool = False
    waits: bool = False
    start: str = ""
    seed: int = 1

    def __post_init__(self) -> None:
        if not all(widths and min(widths) >= 1 for widths in (self.scan, self.main)) or self.epochs < 1:
            raise OneShotError("training settings: scan and main need widths of at least 1, epochs is at least 1")
        if self.tasks_per_batch < 1 or self.samples_per_task < 2:
            raise OneShotError("training settings: tasks_per_batch is at least 1, samples_per_task at least 2")
        if not 0 < self.task_share <= 1:
            raise OneShotError("training settings: task_share is above 0 and at most 1")


def read_settings(path: str | Path, kind: type[Any] = Settings) -> Any:
    """Settings from a TOML file: a dataclass of plain values that all have defaults, `Settings` unless given.

    Raises:
        OneShotError: an unreadable file, an unknown key or a value of another type.
    """
    table = read_toml(path)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for key, value in table.items():
        if key not in defaults:
            raise OneShotError(f"{path}: unknown key {key!r}; allowed: {', '.join(defaults)}")
        expected = type(defaults[key])
        if expected is tuple and isinstance(value, list) and all(type(item) is int for item in value):
            table[key] = tuple(value)
        elif expected is float and type(value) is int:
            table[key] = float(value)
        elif type(value) is not expected:
            raise OneShotError(f"{path}: {key} is {value!r}; allowed: {expected.__name__}")
    return kind(**table)
