"""Shipped weights: names, tags, cards."""

from __future__ import annotations

import json

import networks
import pytest

import oneshot_ml2
from oneshot_ml2.commands import main
from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.network import picking, weights
from oneshot_ml2.network.tasks import TaskNetwork


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("some@1", "some@2", "some@10", "other@3"):
        networks.random_network().save(tmp_path / f"{name}.safetensors")
    (tmp_path / "untagged.safetensors").write_text("left alone")
    monkeypatch.setattr(weights, "_folders", lambda: [tmp_path])
    yield tmp_path


def test_a_name_stands_for_its_highest_tag(folder):
    assert weights.list_pretrained() == ["other@3", "some@1", "some@2", "some@10"]
    assert weights.find_pretrained("some") == folder / "some@10.safetensors"
    assert weights.find_pretrained("some@2") == folder / "some@2.safetensors"


@pytest.mark.parametrize("name, hint", [("some@3", "did you mean"), ("soem", "'some'"), ("", "")])
def test_unknown_names_and_tags_name_those_there_are(folder, name, hint):
    with pytest.raises(WeightsError, match=f"no pretrained weights .*{hint}.*There are: other@3, some@1"):
        weights.find_pretrained(name)


def test_the_first_folder_wins(folder, tmp_path_factory, monkeypatch):
    second = tmp_path_factory.mktemp("second")
    networks.random_network().save(second / "some@1.safetensors")
    networks.random_network().save(second / "more@1.safetensors")
    monkeypatch.setattr(weights, "_folders", lambda: [folder, second])
    assert weights.find_pretrained("some@1").parent == folder
    assert weights.find_pretrained("more").parent == second


def test_weights_are_listed_with_their_cards(folder, capsys):
    (folder / "some@2.json").write_text(json.dumps({"feature_version": 7, "samples": 1234567}))
    assert main.main(["weights"]) == 0
    shown = capsys.readouterr().out
    assert "some@2" in shown and "version 7" in shown and "1,234,567" in shown
    assert main.main(["weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["some@2"]["samples"] == 1234567
    (folder / "some@2.json").write_text("{")
    assert main.main(["weights"]) == 2


def test_the_shipped_weights_load_by_tag():
    names = oneshot_ml2.list_pretrained()
    assert "default@1" in names
    for name in names:
        path = weights.find_pretrained(name)
        network = TaskNetwork.load(path) if name.startswith("tasks@") else weights.load_once(path)
        assert network.card["samples"] > 0


def test_a_network_is_loaded_once_by_whatever_name():
    assert weights.load_pretrained("default") is weights.load_pretrained("default@2") is picking.predictor_of(None)
