"""What the folder of a compiled model holds, and where one may be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oneshot_ml2.common.errors import ModelError

LIBRARY, PROGRAMS, WEIGHTS, SCHEDULES, REPORT = "lib.so", "programs.npz", "weights.npz", "schedules.json", "report.json"
# The host's steps, for `export`.
HOST = "host.npz"
FILES = (LIBRARY, PROGRAMS, WEIGHTS, HOST, SCHEDULES, REPORT)
MANIFEST = "manifest.json"
# For people: only `run --html` reads it, so nothing checks it.
REPORT_PAGE = "report.html"


def check_parent(parent: Path, names: Sequence[str]) -> None:
    """Raise ModelError unless folders of these names may be made in one: not within a compiled model."""
    if parent.is_file():
        raise ModelError(f"{parent} is a file; give a folder for the compiled models")
    if (parent / MANIFEST).exists():
        raise ModelError(f"{parent} is a compiled model; give another folder, which gets {', '.join(names)}")


def check_target(folder: Path) -> None:
    """Raise ModelError unless a compiled model may be written there: nothing is lost but an older one."""
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give a folder for the compiled model")
    if folder.is_dir():
        strange = sorted({entry.name for entry in folder.iterdir()} - {*FILES, MANIFEST, REPORT_PAGE})
        if strange:
            raise ModelError(f"{folder} holds {strange[0]!r}, no part of a compiled model; give another folder")
