"""Work on ranges, spread over threads; it must leave the interpreter free, as compiled functions do."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController


def in_parallel(part: Callable[[int, int], None], n: int, pieces: int | None = None) -> None:
    """Call ``part(begin, end)`` on ``pieces`` of range(n), by default one for each core, in a thread for each core."""
    workers = os.cpu_count() or 1
    cuts = np.linspace(0, n, (workers if pieces is None else pieces) + 1).astype(int)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))


_lock = threading.Lock()
_inside = 0
_limit = contextlib.ExitStack()


@functools.cache
def _libraries() -> ThreadpoolController:
    """Those loaded at the first call; finding them takes time."""
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """While any thread is in here, matrix products run on the thread that asks for them.

    BLAS's own threads wait by spinning, which takes the cores from threads that do more than products.
    """
    global _inside
    with _lock:
        # The limit is the process's: the first one in sets it, the last one out lifts it.
        if _inside == 0:
            _limit.enter_context(_libraries().limit(limits=1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.close()
