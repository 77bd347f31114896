"""Find the VTA to build for models: every member of the family that an FPGA holds, by the network alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from oneshot_ml2.codesign.design import BEST, Codesign, codesign, write_designs
from oneshot_ml2.codesign.fpga import FPGAS
from oneshot_ml2.codesign.front import OBJECTIVES
from oneshot_ml2.codesign.page import page
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_writable, write_whole
from oneshot_ml2.vta.accelerator import DESIGNS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 codesign``."""
    parser.add_argument("model", nargs="+", help="what `compile` takes: names of models, ONNX files, lists of layers")
    parser.add_argument("--fpga", default="xc7z020", metavar="NAME|FILE",
                        help=f"{', '.join(FPGAS)}, or a JSON file (default xc7z020)")  # fmt: skip
    parser.add_argument("--max-bram", type=float, metavar="N", help="BRAM36 that may be taken (default: all)")
    parser.add_argument("--max-dsp", type=int, metavar="N", help="DSP blocks that may be taken (default: all)")
    parser.add_argument("--design", choices=DESIGNS, default="hls", help="of VTA's hardware (default hls)")
    parser.add_argument("--clock", type=int, metavar="MHZ", help="of all (default: a table by FPGA and block)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="latency",
                        help="ms, ms an image with full batches, or ms^2 x area (default latency)")  # fmt: skip
    parser.add_argument("--weight", action="append", default=[], metavar="MODEL=W",
                        help="of a model's time in the sum, once for each (default 1)")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="N", help="of named models' images, or tokens")
    parser.add_argument("--grid", metavar="FILE", help="accelerators of your own: lists of VTA's keys (JSON)")
    parser.add_argument("--calibrate", metavar="FILE", help="your own synthesis reports, for memory and LUTs (JSON)")
    parser.add_argument("--best", type=int, default=BEST, metavar="K", help=f"confirmed by real picks (default {BEST})")
    parser.add_argument("--verify", action="store_true", help="simulate what is confirmed")
    parser.add_argument("-o", "--output", metavar="DIR", help="a log to go on from, the accelerators, a page")
    parser.add_argument("--json", action="store_true", help="print the front and the best as JSON")


def run(args: argparse.Namespace) -> int:
    """Search, print, write; raises OneShotError for what the user can mend."""
    if args.output is not None:
        check_writable(Path(args.output), "-o")
    if args.clock is not None and not 1 <= args.clock <= 10_000:
        raise OneShotError(f"--clock is {args.clock}; allowed: 1 to 10000 (MHz)")
    found = codesign(
        args.model, args.fpga, design=args.design, objective=args.objective, grid=args.grid, clock=args.clock,
        max_bram=args.max_bram, max_dsp=args.max_dsp, weights=_weights(args.weight), size=args.size,
        calibrate=args.calibrate, best=args.best, verify=args.verify, folder=args.output, progress=True,
    )  # fmt: skip
    if args.output is not None:
        write_designs(found, args.output)
        write_whole(Path(args.output) / "codesign.html", page(found))
    print(json.dumps(found.to_dict(), indent=1) if args.json else _described(found, args.output))
    return 0


def _weights(given: list[str]) -> dict[str, float]:
    """``MODEL=W`` as weights by model."""
    found = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not name or not 0 < found[name] < float("inf"):
            raise OneShotError(f"--weight {text}: allowed: MODEL=W, W above 0")
    return found


def _described(found: Codesign, folder: str | None) -> str:
    """A table and what to know beside it."""
    first = found.best[0] if found.best else found.members[0]
    lines = [str(found), f"clock of the first: {first.clock.mhz} MHz ({first.clock.source})"]
    margin = f"memory within {found.overhead.bram36_margin:.0%}, LUTs within {found.overhead.lut_margin:.0%}"
    lines.append(f"resources before any synthesis: {margin}; power is not known")
    if folder is not None:
        lines.append(f"Saved: {folder}/best.json for `compile --accelerator`, {folder}/codesign.html")
    return "\n".join(lines)
