"""Every reader holds damaged files off: a clear error each, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_worker import READERS

pytestmark = pytest.mark.slow

FILES = 2000
WORKER = Path(__file__).parent / "fuzz_worker.py"


def failures(name: str, seeds: Path, files: int = FILES) -> list[str]:
    """What went wrong with a reader's damaged files, a line each; a worker that ends early is begun anew after it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found: list[str] = []
    first = 0
    while first < files:
        command = [sys.executable, str(WORKER), name, str(first), str(files), str(seeds)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        found += [f"{name} {line['failed']}: {line['why']}" for line in lines if "failed" in line]
        if run.returncode == 0:
            break
        at = [line["at"] for line in lines if "at" in line]
        assert at, f"{name}: the undamaged file is not read: {run.stderr[-2000:]}"
        found.append(f"{name} {at[-1]}: the process ended with {run.returncode} {run.stderr[-300:]}")
        first = at[-1] + 1
    return found


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeds")


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused(name: str, seeds: Path) -> None:
    found = failures(name, seeds)
    assert not found, "\n".join(found[:20])
