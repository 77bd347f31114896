"""Errors that a user can mend; the command line prints them as one line and exits with 2. Warnings likewise."""

from __future__ import annotations


class OneShotError(Exception):
    """Base of all errors whose message says what to do."""


class AcceleratorError(OneShotError, ValueError):
    """An accelerator that is unknown, broken or outside what VTA can be."""


class WorkloadError(OneShotError, ValueError):
    """A workload with impossible shapes, or tensors that do not fit it."""


class CorpusError(OneShotError, ValueError):
    """A corpus file that is damaged, foreign, or of another schema version."""


class WeightsError(OneShotError, ValueError):
    """Weights that are damaged, foreign, or of another feature version."""


class ModelError(OneShotError, ValueError):
    """A model that cannot be imported, inputs that do not fit it, or a compiled model that is damaged or foreign."""


class DeviceError(OneShotError, RuntimeError):
    """A device that does not exist or cannot do what was asked."""


def first_line(error: BaseException) -> str:
    """What another package's error says, in one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


class OneShotWarning(RuntimeWarning):
    """A warning whose message says what to do; the command line prints it as one line."""
