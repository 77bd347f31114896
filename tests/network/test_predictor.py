from __future__ import annotations

import dataclasses
import json
import warnings

import networks
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from oneshot_ml2.common.errors import OneShotError, WeightsError
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import FORMAT, NETWORKS, Predictor, Scores
from oneshot_ml2.network.weights import load_pretrained
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import settings
from oneshot_ml2.training.network import Network
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d

SPACE = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))


@pytest.mark.parametrize("which", range(len(NETWORKS)))
def test_scores_are_those_of_the_network_that_is_trained(which):
    predictor = networks.random_network()
    trained = Network(
        settings.Settings(scan=(8, 6), main=(8, 6)), predictor.tensors["mean"], predictor.tensors["scale"]
    )
    state = {name: torch.from_numpy(t) for name, t in predictor.tensors.items() if name not in ("low", "high")}
    trained.load_state_dict(state)
    # More than one chunk, and a last one that is not full.
    indices = np.random.default_rng(0).integers(0, len(SPACE), size=20_001)
    scores = predictor.score(SPACE, indices, NETWORKS[which])
    features = full_features.encode(SPACE, SPACE.values(indices))
    cut = len(full_features.TASK_FEATURES)
    with torch.inference_mode():
        expected = trained(torch.from_numpy(features[:1, :cut]), torch.from_numpy(features[None, :, cut:]))[which][0]
    logit, ratio, variance = expected.numpy().T.astype(np.float64)
    assert np.allclose(scores.p_valid, 1 / (1 + np.exp(-logit)), atol=2e-5)
    assert np.allclose(scores.log_ratio, ratio, atol=2e-4)
    assert np.allclose(scores.spread, np.exp(variance / 2), rtol=1e-3)
    assert (scores.cycles >= scores.bound).all()


def test_no_schedules_give_no_scores():
    scores = networks.random_network().score(SPACE, np.empty(0, dtype=np.int64))
    assert scores.p_valid.shape == scores.cycles.shape == (0,)


def test_weights_survive_a_file(tmp_path):
    predictor = networks.random_network()
    predictor.save(tmp_path / "some")
    again = picking.predictor_of(tmp_path / "some.safetensors")
    assert again.card == predictor.card
    assert {name: t.tobytes() for name, t in again.tensors.items()} == {
        name: t.tobytes() for name, t in predictor.tensors.items()
    }
    (tmp_path / "some.json").unlink()
    assert Predictor.load(tmp_path / "some.safetensors").card == {}


def spoil(change):
    tensors = dict(networks.random_network().tensors)
    change(tensors)
    return tensors


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("tensors", "head", "message"),
    [
        (spoil(lambda t: t.pop("mean")), {}, "'mean' does not fit"),
        (spoil(put("extra", np.zeros(3, dtype=np.float32))), {}, "'extra' does not fit"),
        (spoil(put("main.0.bias", np.zeros(9, dtype=np.float32))), {}, "does not fit"),
        (spoil(put("scale", np.full(len(full_features.FEATURES), np.nan, dtype=np.float32))), {}, "not finite"),
        (spoil(put("low", np.zeros(len(full_features.TASK_FEATURES)))), {}, "'low' does not fit"),
        ({"a": np.zeros(1, dtype=np.float32)}, {}, "at least 2"),
        (spoil(lambda t: None), {"feature_version": "1"}, "feature version 1, this version has"),
        (spoil(lambda t: None), {"format": "something"}, "no weights of oneshot-ml2"),
    ],
)
def test_unusable_weights_say_why(tmp_path, tensors, head, message):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": FORMAT, "feature_version": str(full_features.FEATURE_VERSION)} | head)
    with pytest.raises(WeightsError, match=message) as caught:
        Predictor.load(path)
    assert "oneshot-ml2 train" in str(caught.value)


def test_damaged_files_say_so(tmp_path):
    networks.random_network().save(tmp_path / "whole")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in (("cut", whole[:-100]), ("foreign", b"{}"), ("empty", b"")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"cannot read weights .*{name}"):
            Predictor.load(path)
    with pytest.raises(WeightsError, match="cannot read weights"):
        Predictor.load(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="not weights"):
        Predictor.load(tmp_path / "whole.pt")
    for card in ("{", json.dumps([])):
        (tmp_path / "whole.json").write_text(card)
        with pytest.raises(WeightsError, match="card"):
            Predictor.load(tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match="no pretrained weights 'defualt'; did you mean 'default'"):
        picking.predictor_of("defualt")


def test_a_folder_that_cannot_be_made_keeps_the_old_weights(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match="cannot write"):
        networks.random_network().save(tmp_path / "file" / "some")


def test_far_outside_the_trained_range_is_warned_of():
    network = picking.predictor_of(None)
    usual = Conv2d(1, 64, 56, 56, 64, 3, 3, padding=1)
    assert network.outside(ScheduleSpace(usual, SPACE.accelerator)) == []
    odd = Conv2d(1, 64, 56, 56, 64, 3, 3, dilation=15, padding=15)
    lines = network.outside(ScheduleSpace(odd, SPACE.accelerator))
    assert "is 15; trained on" in lines[0]


def test_other_spaces_are_refused():
    with pytest.raises(OneShotError, match="'full', not 'autotvm'"):
        template = ScheduleSpace(networks.SMALL, SPACE.accelerator, "autotvm")
        networks.random_network().score(template, np.arange(3))


def test_a_design_that_the_weights_have_not_seen_is_warned_of():
    network = networks.random_network()
    space = ScheduleSpace(SPACE.workload, Accelerator.load("pynq-hls"))
    (line,) = [line for line in network.outside(space) if "design" in line]
    assert line.startswith("design is hls; trained on chisel")
    knowing = dataclasses.replace(network, card=network.card | {"designs": ["chisel", "hls"]})
    assert not any("design" in line for line in knowing.outside(space))
    assert not any("design" in line for line in network.outside(SPACE))


def test_weights_of_the_hls_design_see_more_and_survive_a_file(tmp_path):
    network = networks.random_network(version=full_features.HLS_FEATURE_VERSION)
    space = ScheduleSpace(SPACE.workload, Accelerator.load("pynq-hls"))
    indices = np.random.default_rng(0).integers(0, len(space), size=3000)
    scores = network.score(space, indices)
    # Another latency of a row is another score, beside another bound.
    rates = dataclasses.replace(space.accelerator.hls, read_row=20_000)
    other = ScheduleSpace(SPACE.workload, dataclasses.replace(space.accelerator, hls=rates))
    assert (network.score(other, indices).log_ratio != scores.log_ratio).mean() > 0.9
    given = full_features.candidates_at(space, indices)
    assert np.array_equal(network.judge(space, given).log_ratio, scores.log_ratio)
    network.save(tmp_path / "hls")
    again = Predictor.load(tmp_path / "hls.safetensors")
    assert again.seen == network.seen and np.array_equal(again.score(space, indices).p_valid, scores.p_valid)
    save_file(network.tensors, tmp_path / "x.safetensors", metadata={"format": FORMAT, "feature_version": "5"})
    with pytest.raises(WeightsError, match="does not fit"):
        Predictor.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["full", "autotvm"])
def test_the_shipped_weights_are_those_of_the_design(kind):
    workload = Conv2d(1, 64, 56, 56, 64, 3, 3, padding=1)
    names = {"full": ("default", "hls"), "autotvm": ("autotvm", "autotvm-hls")}[kind]
    for design, name, chips in (
        ("chisel", names[0], ("pynq",)),
        ("hls", names[1], ("pynq-hls", "ultra96-hls", "zcu104-hls", "axu5evb-hls")),
    ):
        network = picking.predictor_of(None, kind, design)
        assert network is load_pretrained(name)
        assert network.card.get("designs", ["chisel"]) == [design]
        for chip in chips:
            assert network.outside(ScheduleSpace(workload, Accelerator.load(chip), kind)) == []


def test_the_cost_of_the_most_uncertain_is_finite():
    one = np.ones(2, dtype=np.float32)
    scores = Scores(one, one, np.array([0.1, 3e6], dtype=np.float32), np.array([100.0, 100.0]), caution=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(scores.cost).all() and scores.cost[0] < scores.cost[1]
