"""The task network: T* of a task without a search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from task_networks import drawn_network

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.network import picking
from oneshot_ml2.network.tasks import TaskNetwork, by_shape, load_tasks
from oneshot_ml2.spaces.full.families import Family, guess_of
from oneshot_ml2.spaces.full.knobs import FOLD_TAPS, KNOBS
from oneshot_ml2.spaces.full.task_features import FEATURES, VERSION, encode, reference
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

LAYER = Conv2d(1, 32, 8, 8, 48, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=6, clip=(0, 127)))
PYNQ = Accelerator.load("pynq")
CHIPS = [PYNQ, Accelerator.load("b32"), PYNQ.with_srams(13, 12, 15, 14), Accelerator.load("pynq-hls"), PYNQ]


def test_predictions_are_those_of_each_accelerator_alone() -> None:
    network = drawn_network()
    together = network.least(LAYER, CHIPS)
    assert together.shape == (len(CHIPS),) and np.isfinite(together).all()
    assert together[0] == together[-1]
    alone = [network.least(LAYER, [chip])[0] for chip in CHIPS]
    np.testing.assert_allclose(together, alone, rtol=0.02)
    assert network.least(LAYER, []).shape == (0,)


def test_what_holds_no_schedule_takes_for_ever() -> None:
    found = drawn_network().least(LAYER, [PYNQ, PYNQ.with_srams(4, 5, 9, 7)])
    assert np.isfinite(found[0]) and np.isinf(found[1])


def test_what_only_folds_taps_in_one_more_way_has_a_prediction() -> None:
    # One block of weights at a time: accumulators recur too soon in any other way.
    layer = Conv2d(1, 48, 10, 10, 64, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=6, clip=(0, 127)))
    small = PYNQ.with_srams(12, 8, 12, 8)
    space = ScheduleSpace(layer, small)
    assert FOLD_TAPS in space.knobs[KNOBS.index("fold")].values and len(picking.legal_by_estimate(space, 1)) == 1
    found = drawn_network().least(layer, [PYNQ, small, PYNQ.with_srams(4, 5, 9, 7)])
    assert np.isfinite(found[:2]).all() and found[1] > found[0] and np.isinf(found[2])


def test_a_prediction_is_the_guess_and_what_the_network_adds() -> None:
    network = drawn_network()
    family = Family.of(LAYER, [PYNQ])
    closed = family.closed([PYNQ])
    from oneshot_ml2.spaces.full.families import nests

    features = encode(nests(LAYER, [PYNQ]), closed)
    assert features.shape == (1, len(FEATURES)) and np.isfinite(features).all()
    assert reference(closed)[0] == guess_of(closed[:, 0])[0]
    ratio = network.log_ratio(features)
    assert network.least(LAYER, [PYNQ])[0] == pytest.approx(reference(closed)[0] * np.exp(ratio[0]), rel=1e-6)


def test_numpy_computes_what_torch_does() -> None:
    network = drawn_network(3, 0.3)
    rng = np.random.default_rng(1)
    features = rng.normal(0, 20, (100, len(FEATURES))).astype(np.float32)
    outputs = []
    for name in ("task0", "task1"):
        x = (torch.from_numpy(features) - torch.from_numpy(network.tensors["mean"])) / 10.0
        for i in range(2):
            weight, bias = (torch.from_numpy(network.tensors[f"{name}.{i}.{what}"]) for what in ("weight", "bias"))
            x = x @ weight.T + bias
            x = torch.relu(x) if i == 0 else x
        outputs.append(x.numpy()[:, 0])
    expected = np.clip(np.mean(outputs, axis=0), -2.0, 2.0)
    np.testing.assert_allclose(network.log_ratio(features), expected, rtol=1e-4, atol=1e-5)


def test_features_beyond_the_trained_ranges_are_taken_for_their_ends() -> None:
    network = drawn_network()
    far = np.full((1, len(FEATURES)), 1e6, dtype=np.float32)
    end = network.tensors["high"][None].copy()
    np.testing.assert_array_equal(network.log_ratio(far), network.log_ratio(end))


def test_accelerators_of_one_block_and_batch_are_together() -> None:
    assert [sorted(places) for places in by_shape(CHIPS)] == [[0, 2, 3, 4], [1]]


def test_saved_and_loaded(tmp_path: Path) -> None:
    network = drawn_network()
    network.save(tmp_path / "mine.safetensors")
    again = TaskNetwork.load(tmp_path / "mine.safetensors")
    assert again.card == network.card
    np.testing.assert_array_equal(again.least(LAYER, CHIPS), network.least(LAYER, CHIPS))
    assert load_tasks(tmp_path / "mine.safetensors") is load_tasks(tmp_path / "mine.safetensors")


@pytest.mark.parametrize("damage", ["missing", "truncated", "predictor", "shape", "layer", "none", "nan", "version"])
def test_weights_that_are_none(damage: str, tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "mine.safetensors"
    network = drawn_network()
    network.save(path)
    tensors, head = dict(network.tensors), {"format": "oneshot-ml2 task network", "space": "full"}
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        head["feature_version"] = "0" if damage == "version" else str(VERSION)
        if damage == "predictor":
            head["format"] = "oneshot-ml2 predictor"
        elif damage == "shape":
            tensors["mean"] = tensors["mean"][:-1]
        elif damage == "layer":
            del tensors["task1.0.bias"]
        elif damage == "none":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("task")}
        elif damage == "nan":
            tensors["task1.1.bias"] = np.array([np.nan], dtype=np.float32)
        path.write_bytes(save(tensors, metadata=head))
    with pytest.raises(WeightsError, match=r"mine\.safetensors"):
        TaskNetwork.load(path)


def test_the_shipped_network_has_a_card() -> None:
    network = load_tasks()
    assert network.card["samples"] > 10_000 and network.card["history"]
    assert json.dumps(network.card)
    found = network.least(LAYER, CHIPS)
    assert np.isfinite(found).all()
