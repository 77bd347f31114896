"""The process around a command: the signals that end it, and streams that are closed, full or left by their reader."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO, cast

from oneshot_ml2.common.errors import OneShotWarning

PROG = "oneshot-ml2"
# How long the first signal may take to unwind what runs; the next one that comes after that ends the process at once.
_PATIENCE_S = 1.0


class Interrupts:
    """A context in which SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as Ctrl-C does.

    ``received``: the first of these signals, or None. Only the first raises, since more of them would break off what it
    unwinds: those who end a process tend to tell its whole group, and so it twice. A signal that the process came to
    ignore (as under nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            there = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
            for number in there:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        mine = os.getpid() == self._process
        if mine and self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            raise KeyboardInterrupt
        # A forked child has nothing to unwind that were not the parent's.
        if not mine or time.monotonic() - self._since > _PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class _Stream:
    """A text stream that notes how it failed; a ``forgiving`` one then goes on as if it had not."""

    def __init__(self, stream: TextIO, forgiving: bool) -> None:
        self._stream, self._forgiving = stream, forgiving
        self.failure: OSError | None = None

    def _try(self, action: Any, *args: Any) -> Any:
        try:
            return action(*args)
        except OSError as error:
            self.failure = error
            if not self._forgiving:
                raise
            return None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def settle(self) -> None:
        """Write what is left; what cannot be written is dropped, or the interpreter would fail on it when it ends."""
        with contextlib.suppress(OSError):
            self.flush()
        if self.failure is not None:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextlib.contextmanager
def standard_streams() -> Iterator[_Stream]:
    """Make stdin, stdout and stderr fit to use, and yield stdout; its ``failure`` says why output was lost.

    What is closed becomes the null device: its number would otherwise go to the next file that is opened, and notes of
    native code into that file. Errors of stderr are dropped, as there is nobody who could be told.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
    before = sys.stdout, sys.stderr
    out, err = (
        os.fdopen(number, "w", encoding="utf-8", closefd=False) if stream is None else stream
        for number, stream in enumerate(before, 1)
    )
    if isinstance(out, io.TextIOWrapper) and out is sys.__stdout__:
        # Names of files need not be text that the terminal can show.
        out.reconfigure(errors="backslashreplace")
    streams = _Stream(out, forgiving=False), _Stream(err, forgiving=True)
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.settle()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Our own warnings as ``oneshot-ml2: warning: ...``; those of others as ever."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, OneShotWarning):
                print(f"{PROG}: warning: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield
