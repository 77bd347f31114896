"""Adapt shipped weights to a board by a few measurements."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.commands.options import add_device, finish
from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_output
from oneshot_ml2.devices.base import recorded_workloads
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.network import picking
from oneshot_ml2.network.calibration import boards_of
from oneshot_ml2.spaces.registry import DEFAULT_KIND, listing
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.calibrate import Board
from oneshot_ml2.tuning.finetune import LEAST_BUDGET, adapt, collect, workloads_of
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.vta.accelerator import Accelerator

if TYPE_CHECKING:
    from oneshot_ml2.tuning.finetune import Finetuned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 finetune``."""
    parser.add_argument("--accelerator", required=True, metavar="NAME", help="the board's preset or VTA JSON")
    add_device(parser, "what measures", required=True)
    parser.add_argument("--workloads", metavar="LIST", help="a workload list (.toml) or a model's name")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="height and width of a model's images")
    parser.add_argument("--budget", type=int, default=256, metavar="N", help="measurements in all (default 256)")
    parser.add_argument("--space", default=DEFAULT_KIND, metavar="NAME", help=listing())
    parser.add_argument("--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: default)")
    parser.add_argument("--out", required=True, metavar="FILE", help="weights to write (.safetensors), card beside it")
    parser.add_argument("--log", metavar="FILE", help="of the measurements (default: beside --out)")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="after failures of the device (default 2)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for one program, in a process of its own")
    parser.add_argument("--failures", type=int, default=10, metavar="N",
                        help="stop when the device fails on N schedules in a row (default 10; 0: never)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of what is measured (default 0)")
    parser.add_argument("--json", action="store_true", help="print the card's part on fine-tuning")


def run(args: argparse.Namespace) -> int:
    """Measure, adapt, validate and write; refuses to write weights that are worse than those before."""
    from tqdm import tqdm

    least = min(args.retries, args.failures)
    if args.budget < LEAST_BUDGET or least < 0 or (args.timeout is not None and args.timeout <= 0):
        raise OneShotError(
            f"allowed: --budget {LEAST_BUDGET} or more, --retries and --failures 0 or more, --timeout above 0"
        )
    out = check_output(Path(args.out).with_suffix(".safetensors"), "--out")
    chip, device = Accelerator.load(args.accelerator), open_device(args.device)
    workloads = (args.workloads is None and recorded_workloads(device)) or workloads_of(args.workloads, args.size)
    network = picking.predictor_of(args.weights, args.space, chip.design)
    boards_of(network.kind)
    if network.calibration is not None:
        raise OneShotError("these weights are fine-tuned already; give those that they were made from")
    board = Board([ScheduleSpace(workload, chip, network.kind) for workload in workloads], network)
    log = Path(args.log) if args.log else out.with_suffix(".jsonl")
    with tqdm(total=args.budget, unit="measurement", file=sys.stderr, leave=False, disable=None) as bar:
        limits = Limits(retries=args.retries, timeout=args.timeout, failures=args.failures)
        measured = collect(board, device, args.budget, args.seed, log, limits, lambda n: bar.update(n - bar.n))
    finish(device)
    about = {"device": device.name, "budget": args.budget, "seed": args.seed, "workloads": len(workloads)}
    found = adapt(board, measured, about)
    about = found.network.card["finetuned"]
    if not found.better:
        raise OneShotError(
            f"not better than before on workloads held out: choice {found.before['choice']:.2%} before, "
            f"{found.after['choice']:.2%} after; nothing is written, keep the weights that you have or measure more"
        )
    found.network.save(out)
    print(json.dumps(about, indent=2) if args.json else _table(found, about, out))
    return 0


def _table(found: Finetuned, about: dict[str, Any], out: Path) -> str:
    rows = [(name, f"{found.before[name]:.2%}", f"{found.after[name]:.2%}") for name in ("choice", "error")]
    lines = [tables.table(("held-out workloads", "before", "after"), rows, left=("held-out workloads",)), ""]
    invalid = int(found.measured.failed.sum())
    lines.append(f"{len(found.measured)} measurements, {invalid} programs failed")
    if about["not_believed"]:
        lines.append(f"{about['not_believed']} of them are too good to be believed, and were left out")
    told = f"memory latency {about['memory_latency']} cycles; rates {about['rates']}; costs {about['costs']}"
    lines.append(f"by {about['method']}: {told}")
    for limit in about["limits"]:
        sides = [limit, *([limit["and"]] if "and" in limit else [])]
        ends = [side["between"] for side in sides]
        texts = [f"{s['what']}: {s['kind']} {low:.3g} to {high:.3g}" for s, (low, high) in zip(sides, ends)]
        lines.append(f"{', or '.join(texts)} (probability {limit['probability']:.0%})")
    return "\n".join([*lines, f"{out} written, card beside it"])
