"""Labels of the task network, and its training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.network.tasks import TaskNetwork, networks_of
from oneshot_ml2.training import task_labels
from oneshot_ml2.training.settings import read_settings
from oneshot_ml2.training.task_labels import collect_labels, draw_family, label_family
from oneshot_ml2.training.task_shards import Labels, read_all, read_labels, write_labels
from oneshot_ml2.training.tasks import SETS, TaskSettings, figures, make_task_data, split_pairs, train_tasks
from oneshot_ml2.vta.accelerator import DESIGNS
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

WORKLOADS: tuple[Workload, ...] = (
    Conv2d(1, 16, 6, 6, 24, 3, 3, 1, 1, 1, Epilogue(shift=6)),
    Dense(1, 64, 80, Epilogue(shift=5)),
)
NETWORKS = {design: predictor_of(None, design=design) for design in DESIGNS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two families of three members each."""
    place = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_labels, "FAMILIES", 2)
        patch.setattr(task_labels, "MEMBERS", 3)
        collect_labels(WORKLOADS, NETWORKS, place, 3)
    return place


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_labels, "FAMILIES", 2)
    monkeypatch.setattr(task_labels, "MEMBERS", 3)


def test_labels_are_simulated_cycles(folder: Path) -> None:
    labels = read_all(folder)
    assert len(labels.workloads) == len(labels.accelerators) == 6
    assert len(labels) >= 12
    assert (labels.least > 0).all() and (labels.least <= labels.cycles).all()
    for place in range(len(labels)):
        family = int(labels.family[place])
        member = labels.members(family)[int((labels.family[:place] == family).sum())]
        bound = engine_bound(labels.workloads[family], member).bound
        assert labels.engine_bound[place] == bound <= labels.least[place]


def test_a_run_goes_on_and_gives_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    assert collect_labels(WORKLOADS, NETWORKS, tmp_path, 1) > 0
    assert collect_labels(WORKLOADS, NETWORKS, tmp_path, 2) > 0
    assert collect_labels(WORKLOADS, NETWORKS, tmp_path, 2) == 0
    for name in ("labels-00000.h5", "labels-00001.h5"):
        one, other = read_labels(tmp_path / name), read_labels(folder / name)
        np.testing.assert_array_equal(one.least, other.least)
        np.testing.assert_array_equal(one.closed, other.closed)
    with pytest.raises(CorpusError, match="other workloads"):
        collect_labels(WORKLOADS[:1], NETWORKS, tmp_path, 3)


def test_families_depend_on_seed_and_number_alone() -> None:
    assert draw_family(WORKLOADS, 1, 5) == draw_family(WORKLOADS, 1, 5)
    assert draw_family(WORKLOADS, 1, 5) != draw_family(WORKLOADS, 2, 5)
    _, members = draw_family(WORKLOADS, 1, 5)
    assert len(members) == task_labels.MEMBERS
    assert len({member.with_srams(12, 12, 14, 14) for member in members}) == 1


def test_a_task_that_is_too_large_has_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_labels, "_LARGEST", 10)
    workload, members = draw_family(WORKLOADS, 1, 0)
    found = label_family(workload, members[:2], NETWORKS)
    assert len(found) == 0 and found.workloads == [workload]


def test_a_shard_without_labels(tmp_path: Path) -> None:
    workload, members = draw_family(WORKLOADS, 1, 0)
    write_labels(tmp_path / "labels-00000.h5", Labels.of_family(workload, members[0], []), "x")
    assert len(read_all(tmp_path)) == 0
    with pytest.raises(CorpusError, match="no labels"):
        read_all(tmp_path / "none")


@pytest.mark.parametrize("damage", ["truncated", "text", "format", "summary", "family", "column", "cycles"])
def test_damaged_shards(damage: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels-00000.h5"
    path.write_bytes((folder / path.name).read_bytes())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    elif damage == "text":
        path.write_text("no HDF5")
    else:
        with h5py.File(path, "r+") as file:
            if damage in ("format", "summary"):
                file.attrs[damage] = "other"
            elif damage == "family":
                file["family"][0] = 99
            elif damage == "column":
                del file["least"]
            else:
                file["cycles"][0] = 1
    with pytest.raises(CorpusError, match=r"labels-00000\.h5"):
        read_all(tmp_path)


def test_features_and_targets(folder: Path) -> None:
    labels = read_all(folder)
    data = make_task_data(labels)
    assert len(data) == len(labels) == len(data.layers) == len(data.shapes)
    assert np.isfinite(data.features).all() and np.isfinite(data.target).all()
    assert (data.picked >= 1).all() and (data.bound >= 0).all()


def test_what_is_kept_out_is_not_trained_on(folder: Path) -> None:
    data = make_task_data(read_all(folder))
    parts = split_pairs(data, TaskSettings(held_layers=0.5, held_accelerators=0.5))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(data)))
    seen = {data.layers[place] for place in parts["train"]}, {data.shapes[place] for place in parts["train"]}
    for place in parts["layer"]:
        assert data.layers[place] not in seen[0]
    for place in parts["accelerator"]:
        assert data.shapes[place] not in seen[1]
    for place in parts["both"]:
        assert data.layers[place] not in seen[0] and data.shapes[place] not in seen[1]
    assert set(parts) == {"train", *SETS}


def test_training_learns_and_is_the_same_again(folder: Path) -> None:
    data = make_task_data(read_all(folder))
    settings = TaskSettings(1, (16,), epochs=60, batch=8, held_layers=0.0, held_accelerators=0.0, average=0.9)
    told: list[str] = []
    network = train_tasks(data, settings, {"corpus": ["x"]}, told.append)
    assert len(told) == 60 and told[0].startswith("network 1/1 epoch 1/60")
    every = np.arange(len(data))
    before = float(np.abs(np.expm1(data.target)).mean())
    assert figures(network, data, every)["mape"] < before / 2
    again = train_tasks(data, settings, {})
    np.testing.assert_array_equal(network.tensors["task0.0.weight"], again.tensors["task0.0.weight"])
    assert network.card["corpus"] == ["x"] and network.card["split"]["train"] == len(data)
    assert figures(network, data, every[:0]) == {}


def test_the_mean_of_several_networks(folder: Path) -> None:
    data = make_task_data(read_all(folder))
    settings = TaskSettings(2, (8,), epochs=5, batch=8, held_layers=0.0, held_accelerators=0.0)
    network = train_tasks(data, settings, {})
    assert networks_of(network.tensors) == ["task0", "task1"]
    assert not np.array_equal(network.tensors["task0.0.weight"], network.tensors["task1.0.weight"])
    alone = []
    for name in ("task0", "task1"):
        own = {
            key.replace(name, "task0"): value
            for key, value in network.tensors.items()
            if "task" not in key or name in key
        }
        alone.append(TaskNetwork(own, {}).log_ratio(data.features))
    np.testing.assert_allclose(network.log_ratio(data.features), np.mean(alone, axis=0), rtol=1e-6)
    first = train_tasks(data, dataclasses.replace(settings, networks=1), {})
    np.testing.assert_array_equal(first.tensors["task0.1.weight"], network.tensors["task0.1.weight"])


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text("widths = [4]\nepochs = 2\n")
    assert read_settings(path, TaskSettings) == dataclasses.replace(TaskSettings(), widths=(4,), epochs=2)
    for bad in ("widths = []", "networks = 0", "epochs = 0", "held_layers = 1.5"):
        path.write_text(bad)
        with pytest.raises(OneShotError, match="training settings"):
            read_settings(path, TaskSettings)


def test_nothing_to_train_on(folder: Path) -> None:
    data = make_task_data(read_all(folder))
    with pytest.raises(OneShotError, match="no pairs"):
        train_tasks(data, TaskSettings(held_layers=0.999999, held_accelerators=0.999999), {})
