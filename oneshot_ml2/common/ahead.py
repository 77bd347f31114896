"""Kernels compiled ahead of need by other processes, while this one is busy with something else.

They put what they compile where kernels are kept (`kernels`), and no kernel is compiled twice: a process that needs one
that another is at waits for it. So they may die, or come too late, and all that is lost is time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from oneshot_ml2.common import kernels
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.parallel import one_blas_thread

# What a process runs: the modules that this one finds, it finds too.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from oneshot_ml2.common.ahead import work; work(sys.argv[2:])"
)


@contextlib.contextmanager
def compiled(uses: Sequence[str]) -> Iterator[None]:
    """Have other processes compile, while this block runs, what it will need, as far as that has not been done ever.

    There are at most two, and one less than there are cores: the first goes through ``uses`` from the last to the
    first one, as this process begins at the other end. They end with the block.

    Args:
        uses: ``module:function``, each a call without arguments that has some kernels compiled, in the order of need.
    """
    missing = [use for use in uses if not _is_done(use)]
    orders = (missing[::-1], missing)[: _cores() - 1] if missing else ()
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        for order in orders:
            # Without memory or processes for it, this one does all itself.
            with contextlib.suppress(OSError):
                helpers.append(_started(order))
        # BLAS's threads wait for each other by spinning: with fewer cores than threads, that takes ten times as long.
        with one_blas_thread() if helpers else contextlib.nullcontext():
            yield
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
            if helper.stdin is not None:
                helper.stdin.close()


def _started(uses: Sequence[str]) -> subprocess.Popen[bytes]:
    # In a group of its own: Ctrl-C is its parent's business, which then ends it.
    return subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path), *uses],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def work(uses: Sequence[str]) -> None:
    """What such a process does: it compiles, and ends at once when its parent has gone, however that went."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    for use in uses:
        module, _, function = use.partition(":")
        getattr(importlib.import_module(module), function)()
        mark = _mark(use)
        if mark is not None:
            write_whole(mark, kernels.identity())


def _leave_with_parent() -> None:
    # The pipe's other end is the parent's alone, and closes with it.
    sys.stdin.buffer.read()
    os._exit(1)


def _mark(use: str) -> Path | None:
    """The file that says of what sources, and for which processor, the kernels of a use are all there."""
    place = kernels.place_of(compiled)
    return None if place is None else place / f"{use.replace(':', '.')}.ahead"


def _is_done(use: str) -> bool:
    """Whether there is nothing to compile, or nowhere to keep it."""
    mark = _mark(use)
    try:
        return mark is None or mark.read_text() == kernels.identity()
    except (OSError, ValueError):
        return False


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
