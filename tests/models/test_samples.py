"""Samples of a model's inputs: from arrays, files and folders, and what is refused of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from graph_models import example, needs, small_net

import oneshot_ml2 as o2
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import samples
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.models.samples import Images

NCHW = {"x": ((1, 3, 4, 6), None)}
TWO = {"x": ((2, 3), None), "ids": ((1, 5), 10)}


def fitted(given: Any, expected: samples.Expected = NCHW) -> list[dict[str, np.ndarray]]:
    return samples.fit(samples.find(given), expected)


# Arrays ----------------------------------------------------------------------------------------
def test_arrays_hold_many_samples(tmp_path: Path) -> None:
    many = example((5, 3, 4, 6))
    np.save(tmp_path / "x.npy", many)
    np.savez(tmp_path / "x.npz", x=many)
    for given in (many, {"x": many}, [{"x": one[None]} for one in many], tmp_path / "x.npy", str(tmp_path / "x.npz")):
        found = fitted(given)
        assert [sample["x"].shape for sample in found] == [(1, 3, 4, 6)] * 5
        assert np.array_equal(np.concatenate([sample["x"] for sample in found]), many)
    # One sample needs no axis that counts samples.
    (only,) = fitted(many[2])
    assert np.array_equal(only["x"], many[2:3])


def test_each_input_counts_its_own_first_axis() -> None:
    x, ids = example((6, 3)), np.arange(15).reshape(3, 5) % 10
    found = fitted({"ids": ids, "x": x}, TWO)
    assert [sample["x"].tolist() for sample in found] == [x[at : at + 2].tolist() for at in (0, 2, 4)]
    assert [sample["ids"].tolist() for sample in found] == [[row] for row in ids.tolist()]


def test_an_input_of_one_number() -> None:
    """A line of them, or the same for all samples, as a rate of sampling is; it stays without an axis."""
    expected: samples.Expected = {"x": ((1, 3), None), "rate": ((), None)}
    x = example((4, 3))
    for rate, wanted in ((np.arange(4.0), [0.0, 1, 2, 3]), (np.float32(16), [16.0] * 4)):
        found = fitted({"x": x, "rate": rate}, expected)
        assert [(sample["rate"].shape, float(sample["rate"])) for sample in found] == [((), at) for at in wanted]
    assert [float(sample["s"]) for sample in fitted(np.arange(3.0), {"s": ((), None)})] == [0.0, 1.0, 2.0]
    with pytest.raises(ModelError, match="different numbers of samples: 4 of 'x', 3 of 'rate'"):
        fitted({"x": x, "rate": np.zeros(3)}, expected)
    with pytest.raises(ModelError, match=r"'rate' has shape \(4, 1\); it is one number a sample"):
        fitted({"x": x, "rate": np.zeros((4, 1))}, expected)


def test_a_folder_of_arrays_in_the_order_of_its_names(tmp_path: Path) -> None:
    many = example((4, 3, 4, 6))
    np.save(tmp_path / "b.npy", many[3])
    np.savez(tmp_path / "a.npz", x=many[:3])
    (tmp_path / "notes.txt").write_text("no sample")
    (tmp_path / ".hidden.npy").write_bytes(b"no sample")
    assert np.array_equal(np.concatenate([sample["x"] for sample in fitted(tmp_path)]), many)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"y": example((1, 3, 4, 6))}, "inputs are y; the model takes x"),
        (example((2, 3, 6, 4)), r"shape \(2, 3, 6, 4\); the model was compiled for \(1, 3, 4, 6\)"),
        (example((0, 3, 4, 6)), "empty; give at least one"),
        (np.float32(1), r"shape \(\); the model was compiled"),
        (np.full((1, 3, 4, 6), np.nan), "infinite values or NaN"),
        (np.zeros((1, 3, 4, 6), bool), "bool; the model takes float32"),
    ],
)
def test_arrays_that_do_not_fit(data: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says):
        fitted(data)
    # A file is named.
    path = tmp_path / "bad.npz"
    np.savez(path, **(data if isinstance(data, dict) else {"x": data}))
    with pytest.raises(ModelError, match=rf"bad\.npz: .*{says}"):
        fitted(tmp_path)


def test_several_inputs_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"one array for the inputs x, ids; give an \.npz file"):
        fitted(example((2, 3)), TWO)
    with pytest.raises(ModelError, match="different numbers of samples: 3 of 'x', 2 of 'ids'"):
        fitted({"x": example((6, 3)), "ids": np.zeros((2, 5), int)}, TWO)
    with pytest.raises(ModelError, match="any multiple of its first axis"):
        fitted({"x": example((3, 3)), "ids": np.zeros((1, 5), int)}, TWO)
    with pytest.raises(ModelError, match="whole numbers 0 to 9"):
        fitted({"x": example((2, 3)), "ids": np.full((1, 5), 10)}, TWO)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.npy, \.npz files and no images"):
        samples.find(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.PNG").write_bytes(b"")
    with pytest.raises(ModelError, match="both arrays and images"):
        samples.find(tmp_path)
    (tmp_path / "b.PNG").unlink()
    with pytest.raises(ModelError, match="are for images; the folder"):
        samples.find(Images(tmp_path, resize=4))
    with pytest.raises(ModelError, match="for a folder of images"):
        samples.find(Images(tmp_path / "a.npy", mean=(0.5,)))
    with pytest.raises(ModelError, match=r"cannot read .*none"):
        samples.find(tmp_path / "none")


# Images ----------------------------------------------------------------------------------------
def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    """A random image of (width, height), written; its bytes, (height, width, channels)."""
    image = pytest.importorskip("PIL.Image")
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], *channels), dtype=np.uint8)
    image.fromarray(pixels, mode).save(path)
    return pixels


def test_images_are_scaled_then_less_the_mean_then_divided(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png", (6, 4)), picture(tmp_path / "bb.bmp", (6, 4))
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    found = fitted(Images(tmp_path, mean, std))
    for sample, pixels in zip(found, (first, second), strict=True):
        expected = (pixels / 255 - mean) / std
        assert sample["x"].dtype == np.float32 and sample["x"].flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(sample["x"][0], expected.transpose(2, 0, 1), atol=1e-6)
    (both,) = fitted(tmp_path, {"x": ((2, 4, 6, 3), None)})
    np.testing.assert_allclose(both["x"], np.stack([first, second]) / 255, atol=1e-6)


def test_images_of_one_channel_and_other_sizes(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", (8, 8), "L")
    (grey,) = fitted(tmp_path, {"x": ((1, 1, 8, 8), None)})
    np.testing.assert_allclose(grey["x"][0, 0], pixels / 255, atol=1e-6)
    # Twice as wide as high: the whole image, or the middle of what is scaled by its shorter side.
    pixels = picture(tmp_path / "a.png", (16, 8), "L")
    (middle,) = fitted(Images(tmp_path, resize=8), {"x": ((1, 1, 4, 4), None)})
    np.testing.assert_allclose(middle["x"][0, 0], pixels[2:6, 6:10] / 255, atol=1e-6)
    (whole,) = fitted(tmp_path, {"x": ((1, 1, 8, 8), None)})
    assert abs(whole["x"].mean() - pixels.mean() / 255) < 0.02
    (colours,) = fitted(tmp_path, {"x": ((1, 3, 8, 16), None)})
    np.testing.assert_allclose(colours["x"][0], np.stack([pixels] * 3) / 255, atol=1e-6)


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (6, 4))
    for expected, says in (
        (TWO, "one input; this one takes x, ids"),
        ({"x": ((1, 7, 4, 6), None)}, "which no image has"),
        ({"x": ((2, 3, 4, 6), None)}, "1 images for a batch of 2"),
    ):
        with pytest.raises(ModelError, match=says):
            fitted(tmp_path, expected)
    with pytest.raises(ModelError, match="has 1 channel; give one mean"):
        fitted(Images(tmp_path, (0.1, 0.2, 0.3)), {"x": ((1, 1, 4, 6), None)})
    with pytest.raises(ModelError, match="give a larger --resize"):
        fitted(Images(tmp_path, resize=3))
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ModelError, match=r"b\.jpg cannot be read as an image"):
        fitted(tmp_path)
    # Another format by an image's name is not looked at: some of them are programs.
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n")
    with pytest.raises(ModelError, match=r"b\.jpg cannot be read as an image"):
        fitted(tmp_path)


def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ModelError, match="more than 8 bits"):
        fitted(tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"mean": (1.0, 2.0)}, "mean is 1.0 2.0; allowed: 1 number or 3"),
        ({"std": (0.0,)}, "std is 0.0; allowed: numbers above 0"),
        ({"std": (float("nan"),)}, "std is nan"),
        ({"resize": 0}, "resize is 0"),
    ],
)
def test_numbers_that_cannot_be_meant(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Images("folder", **more)


# In a model ------------------------------------------------------------------------------------
def test_many_samples_take_no_more_memory_than_some() -> None:
    from oneshot_ml2.models.quantize.sampling import drawn_values

    tensor = np.arange(1 << 17, dtype=np.float32)
    assert len(drawn_values(tensor)) == len(drawn_values(tensor, 8)) == 1 << 15
    assert len(drawn_values(tensor, 80)) * 80 <= 1.1 * 8 * (1 << 15)


@pytest.fixture(scope="module")
def graph() -> Any:
    needs("tvm", "torch")
    import torch

    from oneshot_ml2.models.frontend import from_torch

    return from_torch.import_torch(small_net(), (torch.zeros(1, 3, 12, 12),))


def test_the_source_does_not_matter(graph: Any, tmp_path: Path) -> None:
    """The scales of images are those of the arrays that they are."""
    for name in ("a.png", "bb.png", "ccc.png"):
        picture(tmp_path / name, (12, 12))
    images = Images(tmp_path, (0.5,), (0.25,))
    (name,) = graph.inputs
    found = np.concatenate([sample[name] for sample in fitted(images, {name: ((1, 3, 12, 12), None)})])
    told: list[str] = []
    by_image, by_array = quantize(graph, images, tell=told.append), quantize(graph, found)
    assert by_image.graph.values == by_array.graph.values and by_image.errors == by_array.errors
    assert (by_image.samples, by_image.source) == (3, str(tmp_path))
    assert told[:3] == [f"quantize: sample {at} of 3" for at in (1, 2, 3)]


def test_calibration_from_the_command_line(tmp_path: Path, run_command: RunCommand) -> None:
    needs("tvm", "onnx")
    import torch

    path, folder, build = tmp_path / "m.onnx", tmp_path / "images", tmp_path / "build"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name, (20, 16))
    torch.onnx.export(
        small_net(), (torch.zeros(1, 3, 12, 12),), str(path), input_names=["x"], output_names=["file"], dynamo=False
    )
    given = ["compile", path, "--calibration", folder, "--mean", "0.5", "--std", "0.2", "0.25", "0.3"]
    code, out, err = run_command(*given, "--resize", "14", "-o", build)
    assert (code, err) == (0, "")
    assert f"Calibration: 3 samples ({folder})." in out and "scales follow from random" not in out
    assert f"calibrated on 3 samples ({folder})" in (build / "report.html").read_text()
    report = samples.Path(build / "report.json").read_text()
    assert '"samples": 3' in report
    for more, says in (
        (("--calibration", folder, "--mean", "1", "2"), "mean is 1.0 2.0"),
        (("--mean", "0.5"), "--mean is for a folder of images; name it with --calibration"),
        (("--calibration", tmp_path / "none"), "cannot read"),
    ):
        code, out, err = run_command("compile", path, *more)
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err

    # Many samples: one after the other, under the model's own names, also that of numpy's argument.
    x = example((4, 3, 12, 12), 3)
    np.savez(tmp_path / "x.npz", x=x)
    code, out, err = run_command("run", build, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert (code, "ran 4 samples" in out) == (0, True), err
    with np.load(tmp_path / "y.npz", allow_pickle=False) as written:
        (name,), together = list(written), samples.read_tensors(tmp_path / "y.npz")["file"]
    assert name == "file"
    model = o2.load(build)
    alone = [model.run(one[None])["file"] for one in x]
    assert np.array_equal(together, np.concatenate(alone))
