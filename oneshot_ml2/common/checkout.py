"""Which state of the repository runs, for what is measured with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import oneshot_ml2


def commit() -> str:
    """The checkout's commit, ``-dirty`` if changed; empty outside one."""
    root = Path(oneshot_ml2.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
