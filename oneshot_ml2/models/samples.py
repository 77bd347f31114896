"""Inputs of a model from arrays, files and folders: many samples, each of which fills the model's inputs once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import arrays
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ir import check_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneshot_ml2.models.executable import Tensor
    from oneshot_ml2.models.ir import Value

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]
# What a model takes: of each input by name its shape, and what whole numbers are below.
Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], "int | None"]]

_ARRAYS = (".npy", ".npz")
# What Pillow reads by itself: some of its other formats call programs.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Pillow's mode for so many channels, and modes whose values do not fit 0..255.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Images:
    """A folder of images and how they become an input: bytes / 255, less the mean, divided by the spread.

    Attributes:
        folder: of PNG, JPEG, BMP, WebP, PPM or TIFF files.
        mean, std: one number, or one for each channel, of values 0..1.
        resize: the shorter side is scaled to so many pixels, and the middle of the image taken; None: the image is
            scaled to the input's height and width, whatever its own proportions.

    Raises:
        ModelError: numbers that cannot be meant.
    """

    folder: str | Path
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    resize: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
                raise ModelError(f"{name} is {' '.join(map(str, values))}; allowed: 1 number or 3, of values 0..1")
        if min(self.std) <= 0:
            raise ModelError(f"std is {' '.join(map(str, self.std))}; allowed: numbers above 0")
        if self.resize is not None and self.resize < 1:
            raise ModelError(f"resize is {self.resize}; allowed: at least 1 pixel")


@dataclass(frozen=True)
class Found:
    """What there is to take samples of, before it is known what the model takes.

    ``parts``: the name of a file, or nothing, and what it holds; ``files``: of images, made inputs as ``images`` says;
    ``source``: what reports call it.
    """

    source: str
    parts: Sequence[tuple[str, Array | Sample | Sequence[Sample]]] = ()
    files: Sequence[Path] = ()
    images: Images | None = None

    def of(self, inputs: Sequence[str]) -> Found | None:
        """Without the arrays by name that are other models' than the one with these inputs; None: nothing is left."""
        parts = []
        for name, content in self.parts:
            if isinstance(content, Mapping):
                content = {entry: array for entry, array in content.items() if entry in inputs}
            parts += [(name, content)] if len(content) else []
        return replace(self, parts=parts) if parts or self.files else None


Given: TypeAlias = Array | Sample | Sequence[Sample] | str | Path | Images | Found


# Finding ---------------------------------------------------------------------------------------
def read_tensors(path: str | Path) -> Array | dict[str, Array]:
    """The array of a ``.npy`` file, or those of an ``.npz`` file by name; nothing is ever unpickled.

    Raises:
        ModelError: unreadable, or no such file.
    """
    try:
        return arrays.read(Path(path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no .npy or .npz file of numbers: {error}") from error


def find(given: Given) -> Found:
    """What was found already; arrays as they are; a path: the arrays of a file or folder, or the images of a folder.

    Raises:
        ModelError: unreadable, or a folder that holds neither or both; Pillow is not installed.
    """
    if isinstance(given, Found):
        return given
    if isinstance(given, (str, Path)):
        given = Images(given)
    if not isinstance(given, Images):
        return Found("given arrays", [("", given)])
    path = Path(given.folder)
    plain = given == Images(given.folder)
    if not path.is_dir():
        if not plain:
            raise ModelError(f"mean, std and resize are for a folder of images; {path} is none")
        return Found(str(path), [(str(path), read_tensors(path))])
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    files = [entry for entry in entries if entry.is_file()]
    held, images = ([file for file in files if file.suffix.lower() in kinds] for kinds in (_ARRAYS, _IMAGES))
    if bool(held) == bool(images):
        what = "both arrays and images" if held else f"no {', '.join(_ARRAYS)} files and no images"
        raise ModelError(f"the folder {path} holds {what}; give one with either")
    if held and not plain:
        raise ModelError(f"mean, std and resize are for images; the folder {path} holds arrays")
    if images:
        _check_pillow()
    return Found(str(path), [(str(entry), read_tensors(entry)) for entry in held], images, given)


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ModelError("images are read by Pillow; pip install pillow, or give .npy or .npz files") from error


# Fitting ---------------------------------------------------------------------------------------
def expected_of(tensors: Iterable[Value | Tensor]) -> Expected:
    """What a model takes, of its inputs."""
    return {tensor.name: (tensor.shape, tensor.limit) for tensor in tensors}


def fit(found: Found, expected: Expected) -> list[dict[str, NDArray[np.float32]]]:
    """The samples that were found, as a model takes them: float32, contiguous.

    Raises:
        ModelError: names, shapes or values that are not the model's; an image that cannot be read.
    """
    samples = list(itertools.chain.from_iterable(_named(name, content, expected) for name, content in found.parts))
    if found.images is not None and found.files:
        samples += _of_images(found.files, found.images, expected)
    return samples


def _named(
    name: str, content: Array | Sample | Sequence[Sample], expected: Expected
) -> list[dict[str, NDArray[np.float32]]]:
    """As `split`; errors name the file."""
    try:
        return split(content, expected)
    except ModelError as error:
        raise ModelError(f"{name}: {error}" if name else str(error)) from error


def split(data: Array | Sample | Sequence[Sample], expected: Expected) -> list[dict[str, NDArray[np.float32]]]:
    """A list of inputs, or arrays that hold many along their first axis; where that is 1, one sample may be without it.
    Of an input that is one number: a line of them, or one for all samples.

    Raises:
        ModelError: names, shapes or values that are not the model's.
    """
    if isinstance(data, Sequence):
        return [check_tensors(expected, sample) for sample in data]
    if not isinstance(data, Mapping):
        if len(expected) != 1:
            raise ModelError(f"one array for the inputs {', '.join(expected)}; give an .npz file with them by name")
        data = dict.fromkeys(expected, data)
    if set(data) != set(expected):
        raise ModelError(f"inputs are {', '.join(data) or 'none'}; the model takes {', '.join(expected)}")
    counts, whole, scalars = {}, {}, {}
    for name, (shape, _) in expected.items():
        array = np.asarray(data[name])
        if array.ndim + 1 == len(shape) and shape[0] == 1:
            array = array[np.newaxis]
        if not array.size:
            raise ModelError(f"input {name!r} has shape {array.shape}, so it is empty; give at least one sample")
        if not shape:
            if array.ndim > 1:
                raise ModelError(
                    f"input {name!r} has shape {array.shape}; it is one number a sample, so give a line of them"
                )
            scalars[name] = array
            continue
        if array.ndim != len(shape) or array.shape[1:] != shape[1:] or len(array) % shape[0]:
            raise ModelError(
                f"input {name!r} has shape {array.shape}; the model was compiled for {shape}, or any multiple of "
                "its first axis"
            )
        counts[name], whole[name] = len(array) // shape[0], array
    for name, array in scalars.items():
        whole[name] = np.broadcast_to(array, (max(counts.values(), default=1),)) if array.ndim == 0 else array
        counts[name] = len(whole[name])
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise ModelError(f"different numbers of samples: {told}; give as many of each")

    def part(name: str, at: int) -> Array:
        size = expected[name][0][0] if expected[name][0] else 0
        return whole[name][at * size : (at + 1) * size] if size else whole[name][at]

    count = next(iter(counts.values()), 0)
    return [check_tensors(expected, {name: part(name, at) for name in expected}) for at in range(count)]


# Images ----------------------------------------------------------------------------------------
def _of_images(files: Sequence[Path], images: Images, expected: Expected) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Samples of a model that takes one input of images, as many files as its first axis each."""
    if len(expected) != 1:
        raise ModelError(f"images are for a model of one input; this one takes {', '.join(expected)}")
    ((name, (shape, _)),) = expected.items()
    # A height of 4 is no number of channels where 3 are at the end.
    places = [(axis, of) for of in ((1, 3), (4,)) for axis in (1, 3)] if len(shape) == 4 else []
    axis = next((axis for axis, of in places if shape[axis] in of), None)
    if axis is None:
        raise ModelError(f"the input {name!r} has shape {shape}, which no image has; give arrays, .npy or .npz")
    channels, height, width = shape[axis], *(shape[2:] if axis == 1 else shape[1:3])
    if len(files) % shape[0]:
        raise ModelError(f"{len(files)} images for a batch of {shape[0]}; give a multiple")
    mean, std = (np.asarray(values, dtype=np.float32) for values in (images.mean, images.std))
    if channels not in (1, 3) and max(len(mean), len(std)) > 1:
        raise ModelError(f"the input {name!r} has {channels} channels; give one mean and one std")
    if channels == 1 and max(len(mean), len(std)) > 1:
        raise ModelError(f"the input {name!r} has 1 channel; give one mean and one std, not three")
    for begin in range(0, len(files), shape[0]):
        pixels = np.stack(
            [_pixels(file, images.resize, channels, (height, width)) for file in files[begin:][: shape[0]]]
        )
        values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        yield {name: np.ascontiguousarray(values.transpose(0, 3, 1, 2) if axis == 1 else values)}


def _pixels(file: Path, resize: int | None, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A file's image, uint8 (height, width, channels)."""
    from PIL import Image

    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.mode in _WIDE:
                raise ModelError(f"{file} has pixels of more than 8 bits; save it with 8, or give arrays")
            cropped = _scaled(image.convert(_MODES[channels]), resize, size, file)
            return np.asarray(cropped, dtype=np.uint8).reshape(*size, channels)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ModelError(f"{file} cannot be read as an image: {str(error).splitlines()[0]}") from error


def _scaled(image: Image, resize: int | None, size: tuple[int, int], file: Path) -> Image:
    """An image of this height and width."""
    from PIL.Image import Resampling

    height, width = size
    if resize is None:
        return image.resize((width, height), Resampling.BILINEAR)
    scale = resize / min(image.size)
    across, down = (max(round(extent * scale), resize) for extent in image.size)
    if across < width or down < height:
        raise ModelError(
            f"{file} scaled to a shorter side of {resize} is {across}x{down}; the input is {width}x{height}: give a "
            "larger --resize"
        )
    left, top = (across - width) // 2, (down - height) // 2
    return image.resize((across, down), Resampling.BILINEAR).crop((left, top, left + width, top + height))
