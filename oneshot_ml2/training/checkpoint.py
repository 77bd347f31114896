"""Checkpoints, from which a killed run goes on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.reading import FIGURES_DECODER, parse_json
from oneshot_ml2.network.tensor_files import write_weights

if TYPE_CHECKING:
    from oneshot_ml2.training.data import Data
    from oneshot_ml2.training.settings import Settings

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    path: Path, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Everything that the next epoch depends on, as safetensors: written whole or not at all."""
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor.contiguous() for name, tensor in average.items()}
    for name, parameter in network.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"optimizer.{name}.{key}": moments[key].contiguous() for key in _MOMENTS}
    write_weights(path, save(tensors, metadata={"state": json.dumps(state)}))


def load_checkpoint(
    path: Path, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, fingerprint: str
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote; returns its state.

    Raises:
        OneShotError: a damaged checkpoint, or one of another run.
    """
    from safetensors import safe_open

    advice = "delete it to start anew"
    try:
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            state = parse_json(file.metadata()["state"], "its state", decoder=FIGURES_DECODER)
        if not isinstance(state, dict):
            raise ValueError("its state is no object")
        if state.get("fingerprint") == fingerprint:
            _check_checkpoint(tensors, network, average)
    except (OneShotError, OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OneShotError(f"{path}: damaged checkpoint ({error}); {advice}") from error
    if state.get("fingerprint") != fingerprint:
        raise OneShotError(f"{path}: checkpoint of another corpus or other settings; {advice}, or give another --out")
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    for name, tensor in average.items():
        tensor.copy_(tensors[f"average.{name}"])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {key: tensors[f"optimizer.{name}.{key}"] for key in _MOMENTS}
    return state


def _check_checkpoint(tensors: dict[str, Tensor], network: nn.Module, average: dict[str, Tensor]) -> None:
    """Raise ValueError unless a checkpoint has every tensor of a run, and no other."""
    expected = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    expected |= {f"average.{name}": tensor for name, tensor in average.items()}
    for name, parameter in network.named_parameters():
        expected |= {f"optimizer.{name}.{key}": parameter for key in _MOMENTS[:2]}
        expected[f"optimizer.{name}.{_MOMENTS[2]}"] = torch.zeros(())
    for name in set(expected) | set(tensors):
        if name not in expected or name not in tensors:
            raise ValueError(f"tensor {name!r} is missing or unknown")
        if tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype:
            raise ValueError(f"tensor {name!r} has another shape or type")


def fingerprint_of(data: Data, settings: Settings) -> str:
    decided = {key: value for key, value in dataclasses.asdict(settings).items() if key != "checkpoint_minutes"}
    return json.dumps([data.seen.version, sorted(data.digests), decided], sort_keys=True)


def commit() -> str:
    """The checkout's commit, or ``unknown``."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
