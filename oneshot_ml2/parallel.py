"""Work on ranges, spread over threads; it must leave the interpreter free, as compiled functions do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def in_parallel(part: Callable[[int, int], None], n: int, pieces: int | None = None) -> None:
    """Call ``part(begin, end)`` on ``pieces`` of range(n), by default one for each core, in a thread for each core."""
    workers = os.cpu_count() or 1
    cuts = np.linspace(0, n, (workers if pieces is None else pieces) + 1).astype(int)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))
