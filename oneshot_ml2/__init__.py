"""Zero-measurement schedules for VTA accelerators.

Names load on first use, so that importing the package is light: numba, h5py and torch come with what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.version import __version__ as __version__

if TYPE_CHECKING:
    from oneshot_ml2.codesign.design import Codesign as Codesign
    from oneshot_ml2.codesign.design import codesign as codesign
    from oneshot_ml2.common.errors import AcceleratorError as AcceleratorError
    from oneshot_ml2.common.errors import CorpusError as CorpusError
    from oneshot_ml2.common.errors import DeviceError as DeviceError
    from oneshot_ml2.common.errors import ModelError as ModelError
    from oneshot_ml2.common.errors import OneShotError as OneShotError
    from oneshot_ml2.common.errors import WeightsError as WeightsError
    from oneshot_ml2.common.errors import WorkloadError as WorkloadError
    from oneshot_ml2.models.compile import compile as compile
    from oneshot_ml2.models.compiled import CompiledLayer as CompiledLayer
    from oneshot_ml2.models.compiled import CompiledModel as CompiledModel
    from oneshot_ml2.models.executable import Executable as Executable
    from oneshot_ml2.models.executable import load as load
    from oneshot_ml2.models.samples import Images as Images
    from oneshot_ml2.network.picking import Pick as Pick
    from oneshot_ml2.network.picking import pick as pick
    from oneshot_ml2.network.weights import list_pretrained as list_pretrained
    from oneshot_ml2.spaces.base import Schedule as Schedule
    from oneshot_ml2.spaces.space import ScheduleSpace as ScheduleSpace
    from oneshot_ml2.vta.accelerator import Accelerator as Accelerator
    from oneshot_ml2.vta.accelerator import preset_names as preset_names
    from oneshot_ml2.vta.reasons import InvalidSchedule as InvalidSchedule
    from oneshot_ml2.workload.batch_matmul import BatchMatmul as BatchMatmul
    from oneshot_ml2.workload.conv2d import Conv2d as Conv2d
    from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose as Conv2dTranspose
    from oneshot_ml2.workload.dense import Dense as Dense
    from oneshot_ml2.workload.epilogue import Epilogue as Epilogue
    from oneshot_ml2.workload.lists import Layer as Layer
    from oneshot_ml2.workload.max_pool2d import MaxPool2d as MaxPool2d

# Module -> the names that it lends the package.
_EXPORTS = {
    "codesign.design": ("Codesign", "codesign"),
    "common.errors": (
        "AcceleratorError",
        "CorpusError",
        "DeviceError",
        "ModelError",
        "OneShotError",
        "WeightsError",
        "WorkloadError",
    ),
    "models.compile": ("compile",),
    "models.compiled": ("CompiledLayer", "CompiledModel"),
    "models.executable": ("Executable", "load"),
    "models.samples": ("Images",),
    "network.picking": ("Pick", "pick"),
    "network.weights": ("list_pretrained",),
    "spaces.base": ("Schedule",),
    "spaces.space": ("ScheduleSpace",),
    "vta.accelerator": ("Accelerator", "preset_names"),
    "vta.reasons": ("InvalidSchedule",),
    "workload.batch_matmul": ("BatchMatmul",),
    "workload.conv2d": ("Conv2d",),
    "workload.conv2d_transpose": ("Conv2dTranspose",),
    "workload.dense": ("Dense",),
    "workload.epilogue": ("Epilogue",),
    "workload.lists": ("Layer",),
    "workload.max_pool2d": ("MaxPool2d",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
