"""The launcher that TVM's virtual machine calls.

TVM loads `_autoload` by its entry point at every ``import tvm``, so this module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from oneshot_ml2.common.errors import ModelError, OneShotError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oneshot_ml2.devices.base import Device, Session
    from oneshot_ml2.models.runtime import LayerProgram

LAUNCHER = "oneshot_ml2.launch"
# (number of a launch, its operands, its results) -> what the host gets as its results.
Watch: TypeAlias = "Callable[[int, Sequence[NDArray[Any]], Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]"


@dataclass
class _Model:
    """The programs of a model by number, and the DRAM that they share, which no launch reads before it wrote it.

    ``session``: of the device that runs them; None: the functional simulator does. ``failure``: of the last launch.
    """

    segments: tuple[LayerProgram, ...]
    digest: str
    dram: NDArray[np.uint8] = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    watch: Watch | None = None
    session: Session | None = None
    failure: OneShotError | None = None


# Identity of a loaded model -> what its launches need.
_models: dict[str, _Model] = {}


def register_model(identity: str, segments: Sequence[LayerProgram], digest: str) -> None:
    """Make a model's programs known to the launcher, and the launcher to TVM; ``digest``: `runtime.programs_digest`.

    Raises:
        ModelError: another model has this identity, one of other programs.
    """
    import numpy as np

    if identity not in _models:
        size = max((segment.program.dram_bytes for segment in segments), default=0)
        dram = np.zeros(size, dtype=np.uint8)
        for segment in segments:
            segment.place(dram)
        _models[identity] = _Model(tuple(segments), digest, dram)
    elif _models[identity].digest != digest:
        raise ModelError("a model of the same identity but other programs is loaded already; compile this one again")
    _autoload()


def run_on(identity: str, device: Device | None) -> None:
    """Have a device run the programs of a registered model; the functional simulator where it runs no models, or none.

    Raises:
        OneShotError: the device cannot run them.
    """
    model = _models[identity]
    make = getattr(device, "session", None)
    model.session = None if make is None else make([segment.program for segment in model.segments], model.dram.copy())


def seconds_on(identity: str) -> list[float | None] | None:
    """What each program of a registered model took on its device, see `Session.seconds`; None: it has none."""
    session = _models[identity].session
    return None if session is None else session.seconds()


@contextlib.contextmanager
def own_errors(identity: str) -> Iterator[None]:
    """While a registered model runs: an error of a launch is raised as what it was."""
    _models[identity].failure = None
    try:
        yield
    except Exception as error:
        failure = _models[identity].failure
        if failure is None:
            raise
        raise failure from error


@contextlib.contextmanager
def watched(identity: str, watch: Watch) -> Iterator[None]:
    """Call ``watch`` at every launch of a registered model: what it returns stands for the program's results."""
    model = _models[identity]
    model.watch = watch
    try:
        yield
    finally:
        model.watch = None


def as_numpy(tensor: Any) -> NDArray[Any]:
    """A contiguous CPU tensor of TVM as an array that shares its memory; also of borrowed ones."""
    import numpy as np

    dtype = np.dtype(str(tensor.dtype))
    shape = tuple(int(size) for size in tensor.shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = memoryview((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
    return np.frombuffer(memory, dtype).reshape(shape)


def _launch(identity: str, number: int, *tensors: Any) -> None:
    """Run program ``number`` of a model: its operands, then the tensors that take the results."""
    model = _models.get(str(identity))
    if model is None:
        raise ModelError(
            "this model's programs are not loaded; load its folder with oneshot_ml2.models.executable.load"
        )
    segment = model.segments[int(number)]
    arrays = [as_numpy(tensor) for tensor in tensors]
    count = len(segment.inputs)
    with model.lock:
        try:
            if model.session is None:
                results = segment.launch(model.dram, arrays[:count])
            else:
                results = segment.launch_on(model.session, int(number), arrays[:count])
        except OneShotError as error:
            # TVM makes a RuntimeError of it.
            model.failure = error
            raise
        if model.watch is not None:
            results = list(model.watch(int(number), arrays[:count], results))
    for target, result in zip(arrays[count:], results, strict=True):
        target[...] = result


def _autoload() -> None:
    """Register the launcher with TVM."""
    import tvm_ffi

    tvm_ffi.register_global_func(LAUNCHER, _launch, override=True)
