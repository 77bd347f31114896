"""Pick a schedule for every layer of a model with zero measurements, lower and run them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import DeviceError, ModelError, OneShotError
from oneshot_ml2.common.files import check_output, check_writable, write_whole
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models import linking, samples, several
from oneshot_ml2.models.folder import check_target
from oneshot_ml2.models.frontend import onnx_file
from oneshot_ml2.models.frontend.importer import is_list, is_onnx
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.vta.accelerator import Accelerator

if TYPE_CHECKING:
    from oneshot_ml2.models.compiled import CompiledModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 compile``."""
    parser.add_argument(
        "model",
        nargs="+",
        help="resnet18, or another model (an unknown name lists them), an ONNX file, or a list of layers (.toml); "
        "several files of one model: a folder for each in that of -o",
    )
    parser.add_argument("--accelerator", metavar="NAME", default="pynq", help="preset or VTA JSON (default pynq)")
    parser.add_argument(
        "--size", type=int, metavar="N", help="height and width of the images, or tokens (default: 224, or 128 tokens)"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=N,N,...",
        help="of an input of an ONNX file whose dimensions are free, once for each such input; of several files: "
        "FILE:INPUT=N,N,...",
    )
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="NAME", help="only these, one by one; shell patterns work"
    )
    parser.add_argument("--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: default)")
    # Without the list of devices, whose files load numba: what is wrong at first sight need not wait for it.
    parser.add_argument(
        "--device", default="sim", metavar="SPEC", help="what runs the programs (default sim; see `refine --help`)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tensors that the programs run on (default 0)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder: also write what `run` takes there; a .json file: also write the result there",
    )
    parser.add_argument("--build", metavar="DIR", help="as -o DIR, whatever the folder is called")
    parser.add_argument(
        "--calibration",
        action="append",
        metavar="PATH",
        help="inputs that a float model's scales follow from: .npy, .npz, or a folder of these or of images; of "
        "several files: FILE:PATH, once for each",
    )
    parser.add_argument(
        "--mean", nargs="+", type=float, metavar="R", help="of a folder of images, 1 or 3 numbers of 0..1 (default 0)"
    )
    parser.add_argument(
        "--std", nargs="+", type=float, metavar="R", help="what they are divided by then, 1 or 3 numbers (default 1)"
    )
    parser.add_argument(
        "--resize", type=int, metavar="N", help="scale the shorter side of images to N, and take the middle"
    )
    parser.add_argument(
        "--evaluate",
        metavar="PATH",
        help="judge the result beside the float model: as --calibration, a .npz also with labels or outputs",
    )
    parser.add_argument(
        "--schedules", metavar="FILE", help="schedules.json of a compiled model: its layers keep theirs"
    )
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page there")
    parser.add_argument(
        "--rounding",
        choices=("shift", "half_even"),
        default="shift",
        help="of a model: half up by VTA's shift (default), or ties to even as onnxruntime, for more cycles",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not run the result once against the integer reference"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compile, print and save; 1 if a result differs from the reference."""
    chip = Accelerator.load(args.accelerator)
    if args.seed < 0:
        raise OneShotError(f"--seed is {args.seed}; allowed: 0 or more")
    folder, table = _outputs(args)
    alone = len(args.model) == 1
    if not alone:
        _check_several(args, table)
    jobs = several.jobs_of(args.model, args.shape, args.calibration or (), folder)
    # What is wrong with any of them comes before the work.
    for job in jobs:
        _check_outputs(args, job, table)
    for job in jobs:
        if is_onnx(job.model):
            onnx_file.check_onnx_file(job.model)
    total = several.Total()
    ok = True
    for job in jobs:
        if not alone and not args.json:
            print(f"{job.model}:")
        model = _compile(args, job, chip)
        _tell(args, job, model, table)
        total.add(model)
        ok = ok and model.ok
    if not alone:
        print(json.dumps(total.results, indent=2) if args.json else f"\n{total.line()}")
    return 0 if ok else 1


def _outputs(args: argparse.Namespace) -> tuple[Path | None, str | None]:
    """The folder of what is compiled, and the file of the table, as far as they are asked for."""
    table = args.output if args.output and (args.build or args.output.endswith(".json")) else None
    folder = args.build or (args.output if table is None else None)
    return None if folder is None else Path(folder), table


def _check_several(args: argparse.Namespace, table: str | None) -> None:
    """Raise OneShotError if one of the options is for a single model."""
    single = {
        "--layers": args.layers,
        "--schedules": args.schedules,
        "--html": args.html,
        "--evaluate": args.evaluate,
    }
    given = next((option for option, value in single.items() if value), None)
    if given is not None:
        raise OneShotError(f"{given} is for one model; compile that alone")
    if table is not None:
        raise OneShotError("-o of several models is a folder, which gets one for each; their tables: --json > FILE")


def _check_outputs(args: argparse.Namespace, job: several.Job, table: str | None) -> None:
    """Raise OneShotError if something cannot be written, or layers alone would go into a folder."""
    if job.folder is not None:
        if args.layers or is_list(job.model):
            what = "--layers chooses rows of a table" if args.layers else "a list of layers is no model that runs"
            raise OneShotError(f"{what}, and -o DIR writes a whole model; give -o a .json file, or a model without it")
        check_target(job.folder)
        check_writable(job.folder, "-o")
    for path, option in ((args.html, "--html"), (table, "--output")):
        if path:
            check_output(path, option)
    if job.folder is not None:
        linking.check_compiler()


def _compile(args: argparse.Namespace, job: several.Job, chip: Accelerator) -> CompiledModel:
    """One model, compiled and written."""
    # With numba, which takes a second that what is wrong at first sight need not wait for.
    from oneshot_ml2.models import executable
    from oneshot_ml2.models.compile import compile as compile_model
    from oneshot_ml2.models.schedules import read_schedules

    if hasattr(open_device(args.device), "session"):
        raise DeviceError(
            f"compile runs programs on the simulator; run the folder that it writes on the device: "
            f"oneshot-ml2 run DIR --device {args.device}"
        )
    calibration, evaluate = _images(args, job)
    if calibration is not None and job.inputs is not None:
        calibration = calibration.of(job.inputs)
    schedules = () if args.schedules is None else read_schedules(args.schedules)
    if args.weights is not None:
        predictor_of(args.weights)
    with contextlib.nullcontext() if job.folder is None else executable.writing(job.folder) as place:
        with warnings.catch_warnings():
            # The table and the exit code say it.
            warnings.filterwarnings("ignore", message="results differ", category=RuntimeWarning)
            model = compile_model(
                job.model,
                chip,
                calibration=calibration,
                size=args.size,
                shapes=job.shapes,
                layers=args.layers,
                weights=args.weights,
                seed=args.seed,
                schedules=schedules,
                rounding=args.rounding,
                check=not args.no_check,
                evaluate=evaluate,
                progress=True,
            )
        if place is not None:
            model.write(place)
    return model


def _images(args: argparse.Namespace, job: several.Job) -> tuple[samples.Found | None, samples.Found | None]:
    """What ``--calibration`` and ``--evaluate`` name; None: it is not given.

    Raises:
        ModelError: one cannot be read, or the options for images go with neither.
    """
    images = {"mean": args.mean, "std": args.std, "resize": args.resize}
    given = {name: value for name, value in images.items() if value is not None}
    paths = (job.calibration, args.evaluate)
    if given and not any(paths):
        raise ModelError(f"--{next(iter(given))} is for a folder of images; name it with --calibration DIR")
    folders = [path is not None and Path(path).is_dir() for path in paths]
    # One may be images and the other arrays; of neither being a folder, `find` says what is wrong.
    own = [given if folder or not any(folders) else {} for folder in folders]
    found = [None if path is None else samples.find(samples.Images(path, **of)) for path, of in zip(paths, own)]
    return found[0], found[1]


def _tell(args: argparse.Namespace, job: several.Job, model: CompiledModel, table: str | None) -> None:
    """Print the result, and write the files beside the folder."""
    if args.html:
        write_whole(args.html, model.html().encode())
    for warning in model.warnings():
        print(f"oneshot-ml2: warning: {warning}", file=sys.stderr)
    text = json.dumps(model.to_dict(), indent=2)
    if table:
        write_whole(table, text + "\n")
    written = "" if job.folder is None else f"\nWritten to {job.folder}; run it with: oneshot-ml2 run {job.folder}"
    if not args.json:
        print(f"{model.report()}{written}")
    elif len(args.model) == 1:
        # Of several models there is one JSON, after the last of them.
        print(text)
    if not model.ok:
        wrong = ", ".join(layer.name for layer in model.layers if not layer.ok) or "the whole model"
        print(f"oneshot-ml2: WRONG RESULT in {wrong}: this is a bug, please report it", file=sys.stderr)
