"""Disassemble a VTA program."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.evaluation.replay import read_runs
from oneshot_ml2.vta import isa, tokens, work
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Insns, Uops
from oneshot_ml2.vta.timing import designs, records

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LARGEST_STREAM = 1 << 26


def read_program(
    path: str | Path, accelerator: Accelerator | None = None, run: int | None = None
) -> tuple[Accelerator, Insns, Uops | None]:
    """Decode a raw stream of 16-byte instructions, or one run of a file of measured runs.

    Returns the accelerator, the instructions, and the micro-ops if the file has them.

    Raises:
        OneShotError: an unreadable file, or the accelerator or run that this kind of file needs is missing.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_HDF5_MAGIC))
    except OSError as error:
        raise OneShotError(f"cannot read {path}: {error}") from error
    if magic == _HDF5_MAGIC:
        runs = read_runs(path)
        if run is None or not 0 <= run < len(runs):
            raise OneShotError(f"{path} holds {len(runs)} runs; choose one with --run 0 to --run {len(runs) - 1}")
        return runs.accelerator, runs.program(run), isa.decode_uops(runs.micro_ops(run), runs.accelerator)
    if accelerator is None:
        raise OneShotError(f"{path} is a raw instruction stream; give its accelerator with --accelerator NAME")
    if run is not None:
        raise OneShotError(f"{path} is a raw instruction stream; --run is for files of measured runs")
    with path.open("rb") as file:
        content = file.read(_LARGEST_STREAM + 1)
    if not content or len(content) > _LARGEST_STREAM:
        raise OneShotError(f"{path} has {'no' if not content else 'too many'} instructions; allowed: 1 to 4 Mi of them")
    return accelerator, isa.decode(isa.from_bytes(content), accelerator), None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 inspect``."""
    parser.add_argument("file", help="raw stream of 16-byte instructions, or a file of measured runs (.h5)")
    parser.add_argument("--accelerator", metavar="NAME", help="preset or VTA JSON; a raw stream needs it")
    parser.add_argument("--run", type=int, dest="run_index", metavar="I", help="which run of a .h5 file")
    parser.add_argument("--timing", action="store_true", help="add each instruction's execution cycles")
    parser.add_argument("--address", type=int, default=4096, help="byte address of a raw stream (default 4096)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Disassemble a program, with execution cycles on request."""
    given = Accelerator.load(args.accelerator) if args.accelerator else None
    accelerator, insns, uops = read_program(args.file, given, args.run_index)
    lines = isa.disassemble(insns)
    uop_lines = isa.disassemble(insns[:0], uops) if uops is not None else []
    result: dict[str, object] = {"accelerator": accelerator.name, "instructions": lines, "uops": uop_lines}
    if args.timing:
        if not 0 <= args.address < 1 << 32:
            raise OneShotError(f"--address is {args.address}; allowed: 0 to {(1 << 32) - 1}")
        work.check(insns, accelerator, args.file)
        trace = np.empty((len(insns), 2), np.int64)
        cycles, hang, _ = designs.simulate(
            np.ascontiguousarray(insns),
            args.address,
            records.params(accelerator),
            records.nothing()._replace(trace=trace),
        )
        left = tokens.left(insns)
        result |= {"cycles": int(cycles), "hang": bool(hang), "trace": trace.tolist()}
        result["tokens_left"] = dict(zip(tokens.QUEUES, left))
        lines = [f"[{start:8d}, {end:8d})  {line}" for (start, end), line in zip(trace.tolist(), lines, strict=True)]
        uop_lines = [*uop_lines, f"{'hangs after' if hang else 'total'} {cycles} cycles"]
        if any(left):
            uop_lines.append(f"leaves tokens for the next program: {tokens.describe(left)}")
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join([*lines, *uop_lines]))
    return 0
