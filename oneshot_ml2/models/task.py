"""How well a compiled model does its task, beside the float model that it was made of, on data that the user gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import samples

if TYPE_CHECKING:
    from oneshot_ml2.models.samples import Expected, Given

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, Array]
# What stands beside the inputs in data: the number of the right class of every row of scores.
LABELS = "labels"


@dataclass(frozen=True)
class Data:
    """Samples to judge a model by.

    ``source``: what reports call them; ``inputs``: of each sample by name; ``labels``: of each sample, int64, or none;
    ``expected``: of each sample the outputs that are right, by name, or none.
    """

    source: str
    inputs: Sequence[Mapping[str, Array]]
    labels: Sequence[Array] | None = None
    expected: Sequence[Outputs] | None = None


@dataclass(frozen=True)
class OutputTask:
    """An output of the compiled model beside the float model's, over all samples.

    Attributes:
        name: of the output.
        error: root mean square of the difference, relative to the float model's.
        cosine: of the two, of a sample; the mean, and ``least`` the worst.
        agreement: share of rows of scores whose largest element is the same one's; None: the output has no rows.
        accuracy, float_accuracy: share of rows whose largest element is the label's; None: no labels of this output.
        expected, float_expected: error as ``error``, from what is right instead; None: it was not given.
    """

    name: str
    error: float
    cosine: float
    least: float
    agreement: float | None = None
    accuracy: float | None = None
    float_accuracy: float | None = None
    expected: float | None = None
    float_expected: float | None = None


@dataclass(frozen=True)
class Task:
    """What was judged: ``source``, so many ``samples``, and each of the ``outputs``.

    ``calibrated``: the first calibration sample is among them, so the figures may be too good.
    """

    source: str
    samples: int
    outputs: tuple[OutputTask, ...]
    calibrated: bool = False


# Data ------------------------------------------------------------------------------------------
def fit(given: Given, expected: Expected, outputs: Mapping[str, tuple[int, ...]]) -> Data:
    """Data as a model takes it: what `samples.find` takes; arrays by name may hold ``labels`` and outputs, too.

    Args:
        expected: what the model takes; ``outputs``: the shape of each output.

    Raises:
        ModelError: nothing to judge by, names, shapes or values that are not the model's.
    """
    found = samples.find(given)
    inputs: list[Mapping[str, Array]] = []
    beside: list[Mapping[str, Array]] = []
    try:
        for name, content in found.parts:
            for own, rest in _parted(content, expected, outputs):
                new = samples.fit(samples.Found(found.source, [(name, own)]), expected)
                inputs += new
                beside += _shared_out(rest, len(new), outputs)
        if found.images is not None and found.files:
            new = samples.fit(samples.Found(found.source, (), found.files, found.images), expected)
            inputs += new
            beside += [{}] * len(new)
    except ModelError as error:
        raise ModelError(f"data to evaluate: {error}") from error
    if not inputs:
        raise ModelError("data to evaluate is empty; give at least one sample")
    names = {frozenset(part) for part in beside}
    if len(names) > 1:
        raise ModelError("data to evaluate: labels or outputs come with some samples only; give them with all or none")
    labels = [part[LABELS] for part in beside] if LABELS in beside[0] else None
    right = [{name: array for name, array in part.items() if name != LABELS} for part in beside]
    return Data(found.source, inputs, labels, right if right[0] else None)


def _parted(content: Any, expected: Expected, outputs: Mapping[str, Any]) -> Iterable[tuple[Any, Mapping[str, Array]]]:
    """The inputs in a content, and what is beside them."""
    if isinstance(content, Sequence):
        for sample in content:
            yield from _parted(sample, expected, outputs)
        return
    if not isinstance(content, Mapping):
        yield content, {}
        return
    beside = {name: np.asarray(array) for name, array in content.items() if name not in expected}
    unknown = [name for name in beside if name != LABELS and name not in outputs]
    if unknown:
        allowed = ", ".join((*expected, LABELS, *outputs))
        raise ModelError(f"{', '.join(map(repr, unknown))} is no input and no output; allowed: {allowed}")
    yield {name: array for name, array in content.items() if name in expected}, beside


def _shared_out(
    beside: Mapping[str, Array], count: int, outputs: Mapping[str, tuple[int, ...]]
) -> Sequence[Mapping[str, Array]]:
    """What is beside so many samples, each one's part of the first axis.

    Raises:
        ModelError: it has other sizes.
    """
    parts: list[dict[str, Array]] = [{} for _ in range(count)]
    for name, array in beside.items():
        if array.dtype.kind not in "fiub":
            raise ModelError(f"{name} is {array.dtype}; allowed: numbers")
        if name == LABELS:
            if not np.array_equal(array, np.rint(array)) or array.min(initial=0) < 0:
                raise ModelError("labels hold other values than whole numbers from 0 on")
            array = array.astype(np.int64)
        if count == 1 and array.ndim == 0:
            array = array[np.newaxis]
        if not array.ndim or not len(array) or len(array) % count:
            raise ModelError(f"{name} has shape {array.shape} for {count} samples; give one for each")
        pieces = np.split(array, count)
        if name != LABELS and pieces[0].size != int(np.prod(outputs[name])):
            raise ModelError(f"{name} has shape {array.shape} for {count} samples; one has {outputs[name]}")
        for part, piece in zip(parts, pieces):
            part[name] = piece if name == LABELS else piece.reshape(outputs[name])
    return parts


# Judging ---------------------------------------------------------------------------------------
class _Sums:
    """What is added up of an output over the samples; ``axis``: along which its scores lie, None: it has none."""

    def __init__(self, axis: int | None, labelled: bool) -> None:
        self.axis, self.labelled = axis, labelled
        self.rows = self.same = self.right = self.float_right = 0
        self.apart = self.size = 0.0
        self.cosines: list[float] = []
        # Of the compiled model and the float one, and of what is right.
        self.expected = np.zeros(3)

    def add(self, own: Array, real: Array, labels: Array | None, right: Array | None) -> None:
        a, b = own.astype(np.float64).ravel(), real.astype(np.float64).ravel()
        self.apart += float(np.square(a - b).sum())
        self.size += float(b @ b)
        norm = float(np.sqrt(a @ a) * np.sqrt(b @ b))
        self.cosines.append(float(a @ b) / norm if norm else float(np.array_equal(a, b)))
        if self.axis is not None:
            best, float_best = own.argmax(self.axis), real.argmax(self.axis)
            self.rows += best.size
            self.same += int((best == float_best).sum())
            if self.labelled and labels is not None:
                wanted = labels.reshape(best.shape)
                self.right += int((best == wanted).sum())
                self.float_right += int((float_best == wanted).sum())
        if right is not None:
            c = right.astype(np.float64).ravel()
            self.expected += (float(np.square(a - c).sum()), float(np.square(b - c).sum()), float(c @ c))

    def result(self, name: str) -> OutputTask:
        apart, float_apart, size = self.expected.tolist()
        judged, rows = self.axis is not None and self.labelled, max(self.rows, 1)
        return OutputTask(
            name,
            _relative(self.apart, self.size),
            float(np.mean(self.cosines)),
            min(self.cosines),
            None if self.axis is None else self.same / rows,
            self.right / rows if judged else None,
            self.float_right / rows if judged else None,
            _relative(apart, size) if size or apart else None,
            _relative(float_apart, size) if size or apart else None,
        )


def _relative(apart: float, size: float) -> float:
    return float((apart / size) ** 0.5) if size else float(apart > 0)


def judge(
    data: Data,
    shapes: Mapping[str, tuple[int, ...]],
    own: Callable[[Mapping[str, Array]], Outputs],
    real: Callable[[Mapping[str, Array]], Outputs],
    first: Mapping[str, Array],
    progress: bool = False,
) -> Task:
    """Run the compiled model and the float one on every sample.

    Args:
        shapes: of the outputs by name, in order.
        own, real: sample -> outputs by name, of the compiled model and of the float one.
        first: the first calibration sample.
        progress: show a bar on stderr.

    Raises:
        ModelError: the labels fit no output.
    """
    labelled = None if data.labels is None else _labelled(data.labels, shapes)
    sums = {}
    for name, shape in shapes.items():
        rows = 1 if len(shape) == 2 and shape[1] > 1 else None
        is_labelled = labelled is not None and labelled[0] == name
        sums[name] = _Sums(labelled[1] if labelled and is_labelled else rows, is_labelled)
    calibrated = False
    hidden = None if progress else True
    shown = tqdm(data.inputs, desc="evaluate", unit="sample", file=sys.stderr, leave=False, disable=hidden)
    for index, sample in enumerate(shown):
        calibrated = calibrated or all(np.array_equal(sample[name], first.get(name, ())) for name in sample)
        outputs, floats = own(sample), real(sample)
        for name, part in sums.items():
            label = None if data.labels is None else data.labels[index]
            right = None if data.expected is None else data.expected[index].get(name)
            part.add(outputs[name], floats[name], label, right)
    return Task(data.source, len(data.inputs), tuple(part.result(name) for name, part in sums.items()), calibrated)


def _labelled(labels: Sequence[Array], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """The first output whose scores the labels are of, and the axis of these: its second one, or its last.

    Raises:
        ModelError: there is none, or a label is none of its classes.
    """
    size = labels[0].size
    for name, shape in shapes.items():
        for axis in dict.fromkeys((1, len(shape) - 1)) if len(shape) > 1 else ():
            if shape[axis] > 1 and int(np.prod(shape)) == size * shape[axis]:
                largest = max(int(label.max()) for label in labels)
                if largest >= shape[axis]:
                    raise ModelError(
                        f"data to evaluate: a label is {largest}; the output {name!r} has the classes 0 to "
                        f"{shape[axis] - 1}"
                    )
                return name, axis
    told = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    raise ModelError(
        f"data to evaluate: {size} labels a sample fit none of the outputs ({told}); give one for each row of scores"
    )


def from_dict(content: Mapping[str, Any]) -> Task:
    """The task of what `dataclasses.asdict` made of it, as ``report.json`` holds it."""
    return Task(**{**content, "outputs": tuple(OutputTask(**output) for output in content["outputs"])})


# Telling ---------------------------------------------------------------------------------------
def lines(task: Task) -> list[str]:
    """The task's figures as text, a line an output."""
    several = "" if task.samples == 1 else "s"
    told = [f"Task: {task.samples} sample{several} of {task.source}, beside the float model."]
    for output in task.outputs:
        parts = []
        if output.accuracy is not None and output.float_accuracy is not None:
            gap = 100 * (output.accuracy - output.float_accuracy)
            parts.append(f"accuracy {output.accuracy:.2%} (float: {output.float_accuracy:.2%}, {gap:+.2f} points)")
        if output.agreement is not None:
            parts.append(f"same largest element {output.agreement:.2%}")
        if output.expected is not None and output.float_expected is not None:
            parts.append(f"error from what is right {output.expected:.2%} (float: {output.float_expected:.2%})")
        parts.append(f"relative error {output.error:.2%}, cosine {output.cosine:.4f} (least {output.least:.4f})")
        told.append(f"  {output.name}: {'; '.join(parts)}.")
    if task.calibrated:
        told.append("  A sample of the calibration is among these: judge by others, or the figures are too good.")
    return told
