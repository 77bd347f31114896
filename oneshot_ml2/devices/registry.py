"""The devices by their specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.devices.simulated import SimulatorDevice

if TYPE_CHECKING:
    from oneshot_ml2.devices.base import Device

_LATER = {"driver": "a VTA driver library", "rpc": "a board behind a TVM RPC tracker"}


def open_device(spec: str) -> Device:
    """The device that a specification names: ``sim``, the embedded simulator, or ``perturbed:KIND[:SEED]``.

    Raises:
        DeviceError: a device that this version does not have.
    """
    if spec == "sim":
        return SimulatorDevice()
    scheme, _, rest = spec.partition(":")
    if scheme == "perturbed":
        kind, _, seed = rest.partition(":")
        if seed and not seed.isdecimal():
            raise DeviceError(f"device {spec!r}: the seed is {seed!r}; allowed: a whole number, 0 or more")
        return PerturbedDevice(kind, int(seed or 0))
    if scheme in _LATER:
        raise DeviceError(
            f"device {spec!r}: {scheme}: devices ({_LATER[scheme]}) come in a later version; use 'sim' until then"
        )
    raise DeviceError(f"no device {spec!r}; there are: sim, perturbed:KIND:SEED")
