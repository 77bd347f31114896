"""A schedule space with closed-form cycles, so that corpora and collecting are tested without a backend.

Run as a program, it collects like the command line does, in a process (and workers) that know the space.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.spaces.base import BatchResult, Knob
from oneshot_ml2.spaces.registry import SpaceKind, register
from oneshot_ml2.spaces.space import scan
from oneshot_ml2.vta.reasons import Reason

SPACE_VERSION = 3
KNOBS = tuple(f"k{j}" for j in range(6))
register(SpaceKind("fake", "for tests", "fake_space"))


def version_of(workload):
    return SPACE_VERSION


def knobs(workload, accelerator):
    if workload.k == 13:
        raise OneShotError("13 channels do not fit")
    count = 8 if workload.c >= 64 else 3
    return tuple(Knob(name, tuple(1 << i for i in range(count))) for name in KNOBS)


def short(schedule):
    return str(schedule)


def table(space):
    return scan(space)


def canonical(workload, accelerator, values):
    values = values.copy()
    values[values[:, 0] == 1, 5] = 1
    return values


def validity(workload, accelerator, values):
    limit = 64 if workload.c >= 64 else 8
    return np.where(values[:, 1] * values[:, 2] > limit, Reason.SRAM_OVERFLOW, Reason.VALID).astype(np.uint8)


def lower(workload, accelerator, values):
    raise NotImplementedError


programs = lower


def measure_batch(workload, accelerator, values):
    time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
    reason = validity(workload, accelerator, values)
    away = np.log2(values).astype(np.int64) - np.array([2, 1, 2, 0, 1, 2])
    cycles = workload.macs // 64 + accelerator.memory_latency + 10 * (away**2).sum(axis=1)
    valid = reason == Reason.VALID
    return BatchResult(reason, np.where(valid, cycles, -1), np.where(valid[:, None], np.stack([cycles] * 3, 1), 0))


if __name__ == "__main__":
    from oneshot_ml2.commands.main import main

    sys.exit(main(["collect", *sys.argv[1:]]))
