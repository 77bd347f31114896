"""Board servers that the tests build, once for a session, and start."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drivers import needs_compiler

from oneshot_ml2.devices.build import build_server
from oneshot_ml2.vta.accelerator import Accelerator


@functools.cache
def server(chip: Accelerator, cc: str | None = None, driver: str | None = "sim", *options: str) -> Path:
    """A server, in a folder that goes with this process."""
    needs_compiler()
    return build_server(
        driver, chip, Path(_folder().name) / f"server{len(os.listdir(_folder().name))}", cc, None, options
    )


@functools.cache
def sanitized(chip: Accelerator) -> Path:
    """A server that ends, with a report, at what AddressSanitizer and UndefinedBehaviorSanitizer find."""
    needs_compiler()
    folder = Path(_folder().name)
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return build_server("sim", chip, folder / "sanitized", None, None, flags, static=False)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="oneshot-ml2-servers-")


@dataclass
class Running:
    """A server that runs: its process and its port."""

    process: subprocess.Popen[str]
    port: int

    def spec(self, query: str = "limit=10") -> str:
        """Its device."""
        return f"tcp:127.0.0.1:{self.port}?{query}"

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()


def start(command: Sequence[str | Path], *arguments: str | Path, port: int = 0, **environment: str) -> Running:
    """Start a server on loopback; 0: on any port."""
    words = [*map(str, command), "--listen", f"127.0.0.1:{port}", *map(str, arguments)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on 127.0.0.1 port "), line
    return Running(process, int(line.split()[-1]))


@contextlib.contextmanager
def running(command: Sequence[str | Path], *arguments: str | Path, **environment: str) -> Iterator[Running]:
    """As `start`, and ended at the end."""
    one = start(command, *arguments, **environment)
    try:
        yield one
    finally:
        one.process.terminate()
        one.process.wait(10)
