"""Pick a schedule for every layer of a model with zero measurements, lower and run them."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from oneshot_ml2.commands.options import add_device
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_output, check_writable, write_whole
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models import compile, executable, is_onnx, linking
from oneshot_ml2.models.frontend import from_onnx
from oneshot_ml2.models.layerwise import compile_layers
from oneshot_ml2.models.schedules import read_schedules
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.vta.accelerator import Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 compile``."""
    parser.add_argument("model", help="resnet18, or another model (an unknown name lists them), or an ONNX file")
    parser.add_argument("--accelerator", metavar="NAME", default="pynq", help="preset or VTA JSON (default pynq)")
    parser.add_argument(
        "--size", type=int, default=224, metavar="N", help="height and width of the images, or tokens (default 224)"
    )
    parser.add_argument("--layers", nargs="+", default=[], metavar="NAME", help="only these; shell patterns work")
    parser.add_argument("--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: default)")
    add_device(parser, "what runs the programs")
    parser.add_argument("--seed", type=int, default=0, help="of the tensors that the programs run on (default 0)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder: compile the whole model and write what `run` takes; a .json file: also write the result there",
    )
    parser.add_argument("--build", metavar="DIR", help="as -o, whatever the folder is called")
    parser.add_argument(
        "--calibration", metavar="FILE", help="inputs (.npy, .npz) that a float model's scales follow from; with -o DIR"
    )
    parser.add_argument(
        "--schedules", metavar="FILE", help="schedules.json of a compiled model: its layers keep theirs; with -o DIR"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="also write the page that is the folder's report.html there; with -o DIR"
    )
    parser.add_argument(
        "--rounding",
        choices=("shift", "half_even"),
        default="shift",
        help="of whole models: half up by VTA's shift (default), or ties to even as onnxruntime, for more cycles",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not run the whole model once against the integer reference"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compile, print and save; 1 if a result differs from the reference."""
    chip = Accelerator.load(args.accelerator)
    open_device(args.device)
    if args.seed < 0:
        raise OneShotError(f"--seed is {args.seed}; allowed: 0 or more")
    folder = args.build or (args.output if args.output and not args.output.endswith(".json") else None)
    if folder is not None or is_onnx(args.model):
        if folder is None:
            raise OneShotError("give -o a folder for the compiled model, for instance -o build")
        return _run_whole(args, chip, Path(folder))
    for option in ("calibration", "schedules", "html"):
        if getattr(args, option):
            raise OneShotError(f"--{option} is for whole models: give -o a folder, too")
    if args.output:
        check_output(args.output, "--output")
    _check_weights(args)
    with warnings.catch_warnings():
        # The table and the exit code say it.
        warnings.filterwarnings("ignore", message="results differ", category=RuntimeWarning)
        model = compile_layers(
            args.model,
            chip,
            size=args.size,
            layers=args.layers,
            weights=args.weights,
            seed=args.seed,
            progress=True,
        )
    for warning in model.warnings():
        print(f"oneshot-ml2: warning: {warning}", file=sys.stderr)
    text = json.dumps(model.to_dict(), indent=2)
    if args.output:
        write_whole(args.output, text + "\n")
    print(text if args.json else model.report())
    if not model.ok:
        wrong = [entry.layer.name for entry in model.layers if not entry.ok]
        print(f"oneshot-ml2: WRONG RESULT in {', '.join(wrong)}: this is a bug, please report it", file=sys.stderr)
        return 1
    return 0


def _check_weights(args: argparse.Namespace) -> None:
    """Raise WeightsError before the model is looked at."""
    if args.weights is not None:
        predictor_of(args.weights)


def _run_whole(args: argparse.Namespace, chip: Accelerator, folder: Path) -> int:
    """Compile a whole model into a folder; 1 if it differs from the integer reference."""
    if args.layers:
        raise OneShotError("--layers chooses rows of a table; a whole model has all its layers: leave it out")
    # Whatever can be known to be wrong comes before the work.
    executable.check_target(folder)
    check_writable(folder, "-o")
    for path, option in ((args.html, "--html"), (args.build and args.output, "--output")):
        if path:
            check_output(path, option)
    linking.check_compiler()
    if is_onnx(args.model):
        from_onnx.check_onnx_file(args.model)
    calibration = None if args.calibration is None else executable.read_tensors(args.calibration)
    schedules = () if args.schedules is None else read_schedules(args.schedules)
    _check_weights(args)
    with executable.writing(folder) as place:
        model = compile.compile_model(
            args.model,
            chip,
            calibration=calibration,
            size=args.size,
            weights=args.weights,
            seed=args.seed,
            schedules=schedules,
            rounding=args.rounding,
            check=not args.no_check,
            progress=True,
        )
        model.write(place)
        if args.html:
            write_whole(args.html, (place / executable.REPORT_PAGE).read_bytes())
    for warning in model.warnings():
        print(f"oneshot-ml2: warning: {warning}", file=sys.stderr)
    text = json.dumps(model.to_dict(), indent=2)
    if args.build and args.output:
        write_whole(args.output, text + "\n")
    print(text if args.json else f"{model.report()}\nWritten to {folder}; run it with: oneshot-ml2 run {folder}")
    if not model.ok:
        print("oneshot-ml2: WRONG RESULT: this is a bug, please report it", file=sys.stderr)
        return 1
    return 0
