"""The devices by their specification; each is registered by the file of this folder that has it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.records import records
from oneshot_ml2.devices.base import DeviceKind

if TYPE_CHECKING:
    from oneshot_ml2.devices.base import Device


@functools.cache
def device_kinds() -> dict[str, DeviceKind]:
    """The kinds of devices by scheme, those that take no argument first."""
    found = records("oneshot_ml2.devices", DeviceKind)
    return {kind.scheme: kind for kind in sorted(found, key=lambda kind: (kind.takes_argument, kind.scheme))}


def open_device(spec: str) -> Device:
    """The device that a specification names, e.g. ``sim``; `device_kinds` lists the forms. Several, with commas between
    them, are boards to spread measurements over.

    Raises:
        DeviceError: a device that this version does not have, or one that its kind does not know.
    """
    parts = spec.split(",")
    if len(parts) > 1 and all(part.partition(":")[0] in device_kinds() for part in parts):
        return device_kinds()["boards"].open(spec)
    scheme, colon, rest = spec.partition(":")
    kind = device_kinds().get(scheme)
    if kind is not None and (kind.takes_argument or not colon):
        return kind.open(rest)
    raise DeviceError(unknown("device", spec, [kind.form for kind in device_kinds().values()]))
