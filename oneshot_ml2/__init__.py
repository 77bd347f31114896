"""Zero-measurement schedules for VTA accelerators.

Names load on first use, so that importing the package is light: numba, h5py and torch come with what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot_ml2.accelerator import Accelerator as Accelerator
    from oneshot_ml2.accelerator import preset_names as preset_names
    from oneshot_ml2.compile import CompiledLayer as CompiledLayer
    from oneshot_ml2.compile import CompiledModel as CompiledModel
    from oneshot_ml2.compile import compile_layers as compile_layers
    from oneshot_ml2.errors import AcceleratorError as AcceleratorError
    from oneshot_ml2.errors import CorpusError as CorpusError
    from oneshot_ml2.errors import DeviceError as DeviceError
    from oneshot_ml2.errors import OneShotError as OneShotError
    from oneshot_ml2.errors import WeightsError as WeightsError
    from oneshot_ml2.errors import WorkloadError as WorkloadError
    from oneshot_ml2.oneshot import Pick as Pick
    from oneshot_ml2.oneshot import pick as pick
    from oneshot_ml2.pretrained import list_pretrained as list_pretrained
    from oneshot_ml2.schedule import InvalidSchedule as InvalidSchedule
    from oneshot_ml2.schedule import Schedule as Schedule
    from oneshot_ml2.schedule import ScheduleSpace as ScheduleSpace
    from oneshot_ml2.workload import Conv2d as Conv2d
    from oneshot_ml2.workload import Dense as Dense
    from oneshot_ml2.workload import Epilogue as Epilogue
    from oneshot_ml2.workload import Layer as Layer

__version__ = "0.1.0"

# Module -> the names that it lends the package.
_EXPORTS = {
    "accelerator": ("Accelerator", "preset_names"),
    "compile": ("CompiledLayer", "CompiledModel", "compile_layers"),
    "errors": ("AcceleratorError", "CorpusError", "DeviceError", "OneShotError", "WeightsError", "WorkloadError"),
    "oneshot": ("Pick", "pick"),
    "pretrained": ("list_pretrained",),
    "schedule": ("InvalidSchedule", "Schedule", "ScheduleSpace"),
    "workload": ("Conv2d", "Dense", "Epilogue", "Layer"),
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
