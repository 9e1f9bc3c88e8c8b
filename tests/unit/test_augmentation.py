"""Augmentation: a pure function of picture and seed, held to the image size, and errors in sentences."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest

from difc_ray.config import DataProblems
from difc_ray.data import Augmentation, AugmentationError, BalancedOrder, make_augmentation, open_domain, open_family
from difc_ray.errors import ConfigError
from difc_ray.runs.setup import prepare
from tests.faults import faulty_config
from tests.runs import small_config

SHAPE = (3, 24, 24)


def named(name: str) -> Augmentation:
    found = make_augmentation(name, SHAPE)
    assert found is not None
    return found


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def written(folder: Path, *transforms: Any) -> str:
    path = folder / "pipeline.yaml"
    albumentations.save(albumentations.Compose(list(transforms)), path, data_format="yaml")
    return str(path)


def test_none_is_none() -> None:
    assert make_augmentation("none", SHAPE) is None


@pytest.mark.parametrize("name", ["light", "domainbed"])
def test_a_function_of_picture_and_seed(name: str) -> None:
    """Whatever was made before, in this object or another one."""
    first, second = named(name), named(name)
    expected = {seed: first.applied(picture(), seed) for seed in range(20)}
    for seed in (13, 4, 4, 19):
        second.applied(picture(1), 77)
        assert np.array_equal(second.applied(picture(), seed), expected[seed])
    assert len({made.tobytes() for made in expected.values()}) > 15


@pytest.mark.parametrize("size", [(24, 24), (7, 90), (300, 200), (1, 1)])
@pytest.mark.parametrize("name", ["light", "domainbed"])
def test_any_picture_becomes_one_of_the_image_size(name: str, size: tuple[int, int]) -> None:
    made = named(name).applied(picture(size=size), 3)
    assert (made.shape, made.dtype) == ((24, 24, 3), np.uint8)


def test_the_picture_is_left_as_it_was() -> None:
    given = picture(size=(24, 24))
    kept = copy.deepcopy(given)
    given.setflags(write=False)
    named("domainbed").applied(given, 3)
    assert np.array_equal(given, kept)


def test_light_mirrors_half_of_the_pictures() -> None:
    """A picture that is dark on the left stays so, or becomes dark on the right, each in half of the draws."""
    ramp = np.broadcast_to(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (40, 40, 3))
    mirrored = sum(
        made[:, 0].mean() > made[:, -1].mean() for made in (named("light").applied(ramp, s) for s in range(400))
    )
    assert 160 < mirrored < 240


def test_domainbed_changes_colours_and_light_does_not() -> None:
    flat = np.full((40, 40, 3), (200, 100, 50), dtype=np.uint8)
    assert all((named("light").applied(flat, seed) == (200, 100, 50)).all() for seed in range(20))
    colours = {tuple(named("domainbed").applied(flat, seed)[0, 0].tolist()) for seed in range(100)}
    grey = sum(max(colour) - min(colour) <= 1 for colour in colours)
    assert len(colours) > 80
    assert 2 <= grey <= 25


def test_a_batch_is_augmented_by_its_place_in_the_order() -> None:
    """Not by the example: one that comes twice in a batch is altered in two ways."""
    family = open_family("digits", {}, None, 0)
    domain, augmentation = open_domain("digits", family, "mnistm"), make_augmentation("domainbed", family.image_shape)
    one = np.array([domain.split_indices("train")[0]])
    twice = domain.batch(5, 2, 8, BalancedOrder(one, domain.labels[one], np.ones(10), 0, "d"), augmentation)
    assert set(twice.indices.tolist()) == {int(one[0])}
    assert len({image.numpy().tobytes() for image in twice.images}) == 8
    again = domain.batch(5, 2, 8, BalancedOrder(one, domain.labels[one], np.ones(10), 0, "d"), augmentation)
    assert again.images.equal(twice.images)
    later = domain.batch(5, 3, 8, BalancedOrder(one, domain.labels[one], np.ones(10), 0, "d"), augmentation)
    assert not later.images.equal(twice.images)
    whole = domain.batch(5, 0, 24, BalancedOrder(one, domain.labels[one], np.ones(10), 0, "d"), augmentation)
    assert whole.images[16:].equal(twice.images)  # the places decide, not how they are cut into batches


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(
        tmp_path, albumentations.Resize(24, 24), albumentations.Rotate(limit=(-20, 20), p=1.0),
        albumentations.OneOf([albumentations.GaussianBlur(p=1.0), albumentations.GaussNoise(p=1.0)], p=0.5),
    )  # fmt: skip
    pipeline = make_augmentation(path, SHAPE)
    assert pipeline is not None
    made = [pipeline.applied(picture(), seed) for seed in range(10)]
    assert len({each.tobytes() for each in made}) == 10
    again = tmp_path / "again.yaml"
    again.write_text(pipeline.text())
    other = make_augmentation(str(again), SHAPE)
    assert other is not None
    assert other.fingerprint() == pipeline.fingerprint()
    assert all(np.array_equal(other.applied(picture(), seed), made[seed]) for seed in range(10))
    assert pipeline.fingerprint() != named("light").fingerprint()


def test_a_size_that_is_not_the_image_size(tmp_path: Path) -> None:
    pipeline = make_augmentation(written(tmp_path, albumentations.Resize(20, 24)), SHAPE)
    assert pipeline is not None
    with pytest.raises(AugmentationError, match=r"bytes of shape \(24, 24, 3\) .*, got uint8 of shape \(20, 24, 3\)"):
        pipeline.applied(picture(), 0)


def test_a_crop_larger_than_the_picture(tmp_path: Path) -> None:
    pipeline = make_augmentation(written(tmp_path, albumentations.RandomCrop(24, 24)), SHAPE)
    assert pipeline is not None
    assert pipeline.applied(picture(), 0).shape == (24, 24, 3)
    with pytest.raises(AugmentationError, match=r"got CropSizeError for one of 20×60 pixels: .* Begin the pipeline"):
        pipeline.applied(picture(size=(20, 60)), 0)


def test_normalised_pictures_are_refused(tmp_path: Path) -> None:
    pipeline = make_augmentation(written(tmp_path, albumentations.Resize(24, 24), albumentations.Normalize()), SHAPE)
    assert pipeline is not None
    with pytest.raises(AugmentationError, match=r"got float32 of shape \(24, 24, 3\).* leave out `Normalize`"):
        pipeline.applied(picture(), 0)


BOMB = "transform:\n  __class_fullname__: Compose\n  a: &a [1]\n" + "".join(
    f"  {each}: &{each} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, each in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD = {
    "aliases of aliases": (BOMB, "aliases of aliases without end.* At most 10,000 values are read"),
    "itself": ("transform: &a [*a]", "aliases of aliases without end"),
    "too deep": ("transform: " + "[" * 5000 + "]" * 5000, "lists in lists without end"),
    "not there": (None, r"`augment` must be `none`, `light`, `domainbed`, or a file .*, which does not exist"),
    "no YAML": ("a: [", r"`augment` must be"),
    "no pipeline": ("a: 1\n", r"no `transform` in it \(augment\)\. A pipeline is written by `albumentations.save"),
    "no class": ("transform: {p: 1}\n", r"a `transform` without `__class_fullname__`"),
    "unknown transform": (
        "transform: {__class_fullname__: Resise, height: 24, width: 24}\n",
        r"the transform 'Resise' \(augment\)\. Did you mean `Resize`\?",
    ),
    "unknown argument": (
        "transform: {__class_fullname__: Resize, height: 24, width: 24, sharp: true, p: 1}\n",
        r"Argument\(s\) 'sharp' are not valid for transform .* Correct the name of the argument",
    ),
    "wrong value": (
        "transform: {__class_fullname__: Resize, height: tall, width: 24, p: 1}\n",
        r"got `.*p.yaml`, `height`: Input should be a valid integer, .* \(augment\)\. Correct",
    ),
    "code": ("transform: !!python/object/apply:os.getcwd []\n", r"could not determine a constructor"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(tmp_path: Path, kind: str) -> None:
    text, message = BAD[kind]
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(AugmentationError, match=message):
        make_augmentation(str(tmp_path / "p.yaml"), SHAPE)


def test_a_misspelt_name_is_found_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"got `domainbet`, which does not exist .* Did you mean `domainbed`\?"):
        small_config(augment="domainbet")


def test_augmentation_of_numbers_is_refused_before_the_run(tmp_path: Path) -> None:
    config = faulty_config(tmp_path, augment="light")
    with pytest.raises(
        DataProblems,
        match=r"`augment` needs a dataset of pictures, got one that gives numbers, a `FaultyDomain` \(domain `a`\)",
    ):
        prepare(config, None)


def test_a_pipeline_is_tried_on_a_picture_of_every_source_before_the_run(tmp_path: Path) -> None:
    config = small_config(augment=written(tmp_path, albumentations.Resize(20, 20)))
    with pytest.raises(DataProblems) as caught:
        prepare(config, None)
    assert len(caught.value.problems) == 3
    assert all("got uint8 of shape (20, 20, 3) from one of 28×28 pixels" in each for each in caught.value.problems)
    assert [name in each for name, each in zip(config.sources, caught.value.problems, strict=True)] == [True] * 3


@pytest.mark.process
def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    """The library would look for a newer version of itself when it is imported."""
    program = (
        "import socket, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('the network was asked')\n"
        "socket.create_connection = socket.getaddrinfo = urllib.request.urlopen = refuse\n"
        "from difc_ray.data import make_augmentation\n"
        "make_augmentation('domainbed', (3, 8, 8))\n"
        "import albumentations; print('loaded')"
    )
    environ = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
