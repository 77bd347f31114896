"""Reading text: rapidocr's detector, classifier and recognizer for a VTA, on 200 lines of text that are drawn here.

Run: ``pip install -e '.[examples]'``, then ``python examples/reading.py``. Pages hold lines in several fonts, sizes and
colours, with blur and noise, some upside down. The package's own code does what is around the networks; only what runs
them is exchanged, so both results differ by int8 alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

# The bar, in points of character accuracy.
ALLOWED = 1.0
PAGE, LINES = 480, 10
_PAGES, _CALIBRATION_PAGES = 20, 3
# Of each network, the shape that it is compiled for, and how many calibration samples.
SHAPES = {"det": (1, 3, PAGE, PAGE), "cls": (1, 3, 48, 192), "rec": (1, 3, 48, 320)}
_CALIBRATION = {"det": 3, "cls": 24, "rec": 16}
_FILES = {
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
}
# Lines are at most so many characters, and a page's fonts and sizes in pixels are drawn from these.
_CHARACTERS = 20
_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSerif-Italic",
    "STIXGeneral",
)
_SIZES = (20, 30)
_FLIPPED = 0.08
_WORDS = (
    "accelerator animal bridge camera candle circuit compiler country coffee dance engine evening farmer garden guitar "
    "harbour island journal kitchen ladder market memory morning mountain network number ocean orange paper pencil "
    "picture planet pocket quarter railway river schedule season shadow silver station summer table tensor ticket "
    "travel valley village violin water weather window winter yellow zebra"
).split()

# A network: images float32 (1, 3, height, width) -> its outputs in a list.
Network = Callable[[common.Array], Sequence[common.Array]]


@dataclass(frozen=True)
class Line:
    """A line of text on a page, and its box: left, top, right, bottom in pixels."""

    text: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Read:
    """What was read on a page: corners float (4, 2) of each text, and the texts."""

    boxes: Sequence[common.Array]
    texts: Sequence[str]


# Pages -----------------------------------------------------------------------------------------
def page(rng: np.random.Generator) -> tuple[common.Array, list[Line]]:
    """A page uint8 (PAGE, PAGE, 3), and its lines."""
    from PIL import Image, ImageDraw, ImageFilter

    light = rng.integers(190, 256, 3)
    shade = np.linspace(0, rng.integers(0, 40), PAGE)[:, None, None]
    image = Image.fromarray(np.clip(light - shade + np.zeros((PAGE, PAGE, 3)), 0, 255).astype(np.uint8))
    lines = []
    for row in range(LINES):
        font = _font(str(rng.choice(_FONTS)), int(rng.integers(*_SIZES)))
        text = _text(rng)
        while (width := font.getbbox(text)[2]) > PAGE - 24:
            text = text.rpartition(" ")[0]
        top, left = row * PAGE // LINES + 6, int(rng.integers(8, PAGE - width - 8))
        layer = Image.new("L", (PAGE, PAGE // LINES))
        ImageDraw.Draw(layer).text((left, 2), text, fill=255, font=font)
        box = layer.getbbox()
        assert box is not None
        if rng.random() < _FLIPPED:
            layer.paste(layer.crop(box).rotate(180), box)
        ink = Image.new("RGB", layer.size, tuple(rng.integers(0, 110, 3).tolist()))
        image.paste(ink, (0, top), layer)
        lines.append(Line(text, (box[0], box[1] + top, box[2], box[3] + top)))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.7)))), np.float64)
    noisy = blurred + rng.normal(0, rng.uniform(2, 10), blurred.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), lines


def _font(name: str, size: int) -> Any:
    """A font that matplotlib carries."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _text(rng: np.random.Generator) -> str:
    """Words, and now and then a number or a capital."""
    words: list[str] = []
    while True:
        word = str(rng.choice(_WORDS)) if rng.random() < 0.8 else str(rng.integers(10, 10000))
        if len(" ".join([*words, word])) > _CHARACTERS:
            return " ".join(words)
        words.append(word.capitalize() if rng.random() < 0.3 else word)


# Reading ---------------------------------------------------------------------------------------
def engine() -> Any:
    """rapidocr with shapes that are those of the compiled networks: pages as they are, lines one by one.

    One thread: for single lines the threads of onnxruntime would mostly wait for each other, which takes the cores.
    """
    from rapidocr_onnxruntime import RapidOCR

    threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    return RapidOCR(det_limit_side_len=PAGE, cls_batch_num=1, rec_batch_num=1, **threads)


def networks(reader: Any) -> dict[str, Network]:
    """What runs the networks of an engine."""
    return {"det": reader.text_det.infer, "cls": reader.text_cls.infer, "rec": reader.text_rec.session}


def exchange(reader: Any, own: dict[str, Network]) -> None:
    """Have others run the networks of an engine."""
    for name, part, field in (
        ("det", reader.text_det, "infer"), ("cls", reader.text_cls, "infer"), ("rec", reader.text_rec, "session"),
    ):  # fmt: skip
        setattr(part, field, own[name])


def read(reader: Any, image: common.Array) -> Read:
    """Find the lines of a page, turn those that are upside down, and read them."""
    found, _ = reader.text_det(image)
    if found is None or not len(found):
        return Read([], [])
    boxes = reader.sorted_boxes(found)
    crops = [_narrowed(crop) for crop in reader.get_crop_img_list(image, boxes)]
    crops, _, _ = reader.text_cls(crops)
    texts, _ = reader.text_rec(crops)
    return Read(boxes, [str(text[0]) for text in texts])


def _narrowed(crop: common.Array) -> common.Array:
    """A crop (height, width, 3) that is no wider than the recognizer's input at its height."""
    from PIL import Image

    height, width = crop.shape[:2]
    widest = height * SHAPES["rec"][3] // SHAPES["rec"][2]
    if width <= widest:
        return crop
    return np.asarray(Image.fromarray(crop).resize((max(widest, 1), height), Image.Resampling.BICUBIC))


# Judging ---------------------------------------------------------------------------------------
def distance(a: str, b: str) -> int:
    """Levenshtein's: how many characters to insert, remove or exchange."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (one != other))
    return row[-1]


def right(lines: Sequence[Line], result: Read) -> tuple[int, int]:
    """Characters of a page that were read right, and all: of each line, by the texts whose middle is in its box."""
    correct = total = 0
    for line in lines:
        left, top, end, bottom = line.box
        inside = []
        for box, text in zip(result.boxes, result.texts):
            x, y = np.asarray(box).mean(0)
            if left <= x <= end and top <= y <= bottom:
                inside.append((float(x), text))
        # Spaces are no characters: the recognizer was trained on text without them.
        wanted, found = line.text.replace(" ", ""), "".join(text for _, text in sorted(inside)).replace(" ", "")
        total += len(wanted)
        correct += max(len(wanted) - distance(wanted, found), 0)
    return correct, total


def picture(path: Path, image: common.Array, results: Sequence[tuple[str, Read]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(9 * len(results), 9))
    for axis, (name, result) in zip(np.atleast_1d(axes), results):
        axis.imshow(image)
        for box, text in zip(result.boxes, result.texts):
            corners = np.asarray(box)
            axis.fill(corners[:, 0], corners[:, 1], fill=False, edgecolor="red")
            axis.text(corners[0, 0], corners[0, 1] - 1, text, color="blue", fontsize=10)
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def recorded(reader: Any, pages: Sequence[common.Array]) -> dict[str, common.Array]:
    """What the networks take while pages are read, the first samples of each."""
    seen: dict[str, list[common.Array]] = {name: [] for name in SHAPES}
    real = networks(reader)

    def recorder(name: str) -> Network:
        def run(x: common.Array) -> Sequence[common.Array]:
            seen[name].append(x.astype(np.float32))
            return real[name](x)

        return run

    exchange(reader, {name: recorder(name) for name in SHAPES})
    for image in pages:
        read(reader, image)
    exchange(reader, real)
    return {name: np.concatenate(_spread(arrays, _CALIBRATION[name])) for name, arrays in seen.items()}


def _spread(arrays: Sequence[common.Array], count: int) -> list[common.Array]:
    return [arrays[index] for index in np.unique(np.linspace(0, len(arrays) - 1, count).astype(int))]


def on_vta(folders: dict[str, Path]) -> dict[str, Network]:
    """What runs compiled folders, by the exact simulator."""

    def network(folder: Path) -> Network:
        model = common.o2.load(folder)
        return lambda x: list(model.run(x.astype(np.float32)).values())

    return {name: network(folder) for name, folder in folders.items()}


# What a worker process reads with.
_own: dict[str, Any] = {}


def _begin(folders: dict[str, Path]) -> None:
    _own["reader"] = engine()
    exchange(_own["reader"], on_vta(folders))


def _read(image: common.Array) -> Read:
    return read(_own["reader"], image)


def main() -> int:
    import rapidocr_onnxruntime

    args = common.options(__doc__, "reading")
    reader = engine()
    rng = np.random.default_rng(0)
    others = [page(rng)[0] for _ in range(_CALIBRATION_PAGES)]
    pages, lines = zip(*(page(rng) for _ in range(_PAGES)))
    calibration = recorded(reader, others)
    real = [read(reader, image) for image in pages]
    files, folders = Path(rapidocr_onnxruntime.__file__).parent / "models", {}
    for name, shape in SHAPES.items():
        folders[name] = args.output / name
        given: dict[str, Any] = {"shapes": {"x": shape}, "calibration": calibration[name]}
        # Every layer is checked by a test already; the run itself is what is judged here.
        common.compiled(files / _FILES[name], args.accelerator, folders[name], check=False, **given)
    own = common.in_processes(_begin, (folders,), _read, pages, "pages")
    rows, shares = [], []
    for what, results in (("float (onnxruntime)", real), (f"int8 on {args.accelerator}", own)):
        counts = np.array([right(*part) for part in zip(lines, results)]).sum(0)
        shares.append(100 * counts[0] / counts[1])
        boxes = sum(len(result.boxes) for result in results)
        rows.append((what, str(boxes), f"{counts[0]} of {counts[1]}", f"{shares[-1]:.2f} %"))
    common.table(("models", f"boxes ({_PAGES * LINES} lines)", "characters right", "accuracy"), rows)
    picture(args.output / "reading.png", pages[0], [("float", real[0]), ("int8 on VTA", own[0])])
    print(f"picture: {args.output / 'reading.png'}")
    met = shares[1] >= shares[0] - ALLOWED
    return common.verdict(f"character accuracy at least the float models' - {ALLOWED} points", bool(met))


if __name__ == "__main__":
    sys.exit(main())
