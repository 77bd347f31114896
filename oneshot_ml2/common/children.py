"""Processes that others start: they end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection


def end_with_parent() -> None:
    """In a process that another one started: Ctrl-C is that one's business; when it is gone, so is this one.

    A parent that is killed ends nothing itself. What a child computes then has nobody to go to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever the parent makes of it, a child that is told to end does.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def leave() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
