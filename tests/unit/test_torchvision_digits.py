"""The `torchvision_digits` dataset on small files that torchvision's own classes read."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from difc_ray.data import FilesMissingError, MalformedDataError, TorchvisionDigits, open_domain, open_family
from difc_ray.data.published import files, readers
from difc_ray.data.published import torchvision_digits as module
from difc_ray.data.published.collection import ShiftedDomain
from difc_ray.errors import ConfigError
from tests.published import Part, idx, part, write_idx, write_svhn, write_usps

TRAIN, TEST = part(60, seed=0), part(12, seed=1)  # 600 and 120 pictures
USPS = (part(6, seed=2, side=16), part(2, seed=3, side=16))


def colour(of: Part) -> Part:
    """As SVHN has them: three different channels."""
    return np.stack([of[0], 255 - of[0], of[0] // 2], axis=-1), of[1]


SVHN = (colour(part(5, seed=4, side=32)), colour(part(2, seed=5, side=32)))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_idx(tmp_path / "MNIST" / "raw", TRAIN, TEST)
    write_usps(tmp_path, *USPS, monkeypatch)
    write_svhn(tmp_path, *SVHN, monkeypatch)
    return tmp_path


def opened(root: Path | None, name: str, seed: int = 0, image_size: int | None = None, **options: Any) -> ShiftedDomain:
    domain = open_domain("torchvision_digits", open_family("torchvision_digits", options, root, seed, image_size), name)
    assert isinstance(domain, ShiftedDomain)
    return domain


def everything(domain: ShiftedDomain) -> np.ndarray:
    return domain.fitted(domain.split_indices("all"))


def published(domain: ShiftedDomain) -> np.ndarray:
    """The digits of MNIST that a domain is made of."""
    return np.concatenate([TRAIN[0], TEST[0]])[domain.rows]


def test_the_family(root: Path) -> None:
    family = open_family("torchvision_digits", {}, root, 0)
    assert family.class_names == tuple("0123456789")
    assert family.domain_names() == (
        "mnist", "usps", "svhn", "mnistm", "rotated_0", "rotated_15", "rotated_30", "rotated_45", "rotated_60",
        "rotated_75", "colored_90", "colored_80", "colored_10",
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_what_torchvision_reads(root: Path, packed: bool) -> None:
    theirs = [torchvision.datasets.MNIST(str(root), train=train) for train in (True, False)]
    expected = np.concatenate([each.data.numpy() for each in theirs])
    if packed:
        for path in list((root / "MNIST" / "raw").iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    domain = opened(root, "mnist")
    assert np.array_equal(everything(domain), np.repeat(expected[..., None], 3, axis=3))
    assert np.array_equal(domain.labels, np.concatenate([each.targets.numpy() for each in theirs]))
    assert np.array_equal(domain.labels, np.concatenate([TRAIN[1], TEST[1]]))


def test_usps_is_what_torchvision_reads_enlarged(root: Path) -> None:
    theirs = [torchvision.datasets.USPS(str(root), train=train) for train in (True, False)]
    data = np.concatenate([each.data for each in theirs])
    domain = opened(root, "usps", image_size=16)
    assert np.array_equal(everything(domain)[..., 0], data)
    assert np.abs(data.astype(int) - np.concatenate([USPS[0][0], USPS[1][0]])).max() <= 1  # it truncates
    assert np.array_equal(domain.labels, np.concatenate([USPS[0][1], USPS[1][1]]))
    larger = everything(opened(root, "usps"))
    expected = Image.fromarray(data[7]).resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(larger[7, :, :, 2], np.asarray(expected))


def test_svhn_is_in_colour_with_ten_as_zero(root: Path) -> None:
    domain = opened(root, "svhn", image_size=32)
    assert np.array_equal(everything(domain), np.concatenate([SVHN[0][0], SVHN[1][0]]))
    assert np.array_equal(domain.labels, np.concatenate([SVHN[0][1], SVHN[1][1]]))
    assert set(domain.labels.tolist()) == set(range(10))
    assert opened(root, "svhn").images_at(np.arange(3)).shape == (3, 3, 28, 28)


@pytest.mark.parametrize(("name", "train", "test"), [("mnist", 600, 120), ("usps", 60, 20), ("svhn", 50, 20)])
def test_their_test_part_is_ours(root: Path, name: str, train: int, test: int) -> None:
    domain = opened(root, name)
    assert domain.split_indices("test").tolist() == list(range(train, train + test))
    assert domain.size("val") == round(train / 9)
    assert sorted([*domain.split_indices("train"), *domain.split_indices("val")]) == list(range(train))


def test_a_digit_of_mnist_is_in_one_split_wherever_it_comes(root: Path) -> None:
    where: dict[int, set[str]] = {}
    for name in [name for name in module.DOMAINS if name not in ("usps", "svhn")]:
        for options in ({}, {"limit": 100}):
            domain = opened(root, name, seed=3, **options)
            for split in ("train", "val", "test"):
                for row in domain.rows[domain.split_indices(split)]:
                    where.setdefault(int(row), set()).add(split)
    assert sorted(where) == list(range(720))
    assert {len(splits) for splits in where.values()} == {1}


@pytest.mark.parametrize("prefix", ["rotated", "colored"])
def test_rotated_and_colored_parts_are_disjoint_and_complete(root: Path, prefix: str) -> None:
    rows = [opened(root, name).rows for name in module.DOMAINS if name.startswith(prefix)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(720))
    assert {len(each) for each in rows} == {720 // len(rows)}


@pytest.mark.parametrize("angle", [0, 15, 30, 45, 60, 75])
def test_rotated_is_domainbeds_transform(root: Path, angle: int) -> None:
    domain = opened(root, f"rotated_{angle}")
    found = everything(domain)
    for i in range(0, 120, 11):
        image = transforms.to_pil_image(torch.from_numpy(published(domain)[i]))
        turned = transforms.rotate(image, angle, fill=(0,), interpolation=InterpolationMode.BILINEAR)
        assert np.array_equal(found[i, :, :, 0], np.asarray(turned))


def test_mnistm_is_a_photo_patch_minus_a_digit(root: Path) -> None:
    domain = opened(root, "mnistm")
    found, digits = everything(domain).astype(int), published(domain).astype(int)
    photos = load_sample_images().images
    places = module.shift_of("mnistm", domain._collection).places_N3
    for i in range(0, 720, 50):
        photo, top, left = places[i]
        place = photos[photo][top : top + 28, left : left + 28].astype(int)
        assert np.array_equal(found[i], np.abs(place - digits[i][..., None]))
    assert set(places[:, 0].tolist()) == {0, 1}
    assert len(np.unique(places, axis=0)) > 700


@pytest.mark.parametrize("percent", [90, 80, 10])
def test_colour_tells_the_digit_as_often_as_the_name_says(root: Path, percent: int) -> None:
    domain = opened(root, f"colored_{percent}")
    brightest = everything(domain).reshape(240, -1, 3).max(axis=1).astype(float)
    palette = np.array(module.COLOURS, dtype=float)
    cosine = brightest @ palette.T / np.linalg.norm(brightest, axis=1)[:, None] / np.linalg.norm(palette, axis=1)
    seen = cosine.argmax(axis=1)
    grey = published(domain)
    assert np.array_equal(
        everything(domain).max(axis=3), np.rint(grey / 255 * palette[seen].max(axis=1)[:, None, None])
    )
    share = (seen == domain.labels).mean()
    assert abs(share - percent / 100) < 4 * np.sqrt(0.25 / 240)


def test_other_colours_are_equally_likely() -> None:
    labels = np.repeat(np.arange(10), 9000)
    colours = module.drawn_colours(labels, 0.1, np.random.default_rng(0))
    numbers = {each: i for i, each in enumerate(module.COLOURS)}
    table = np.zeros((10, 10))
    np.add.at(table, (labels, [numbers[tuple(each)] for each in colours.tolist()]), 1 / 9000)
    assert np.abs(table - 0.1).max() < 0.015  # 4.7 standard errors
    assert len(numbers) == 10


def test_content_depends_on_no_seed(root: Path) -> None:
    for name in ("svhn", "mnistm", "rotated_45", "colored_80"):
        first, second = opened(root, name, seed=0), opened(root, name, seed=1)
        assert first.fingerprint() == second.fingerprint()
        assert np.array_equal(everything(first), everything(second))
        assert not np.array_equal(first.split_indices("val"), second.split_indices("val"))
    prints = {opened(root, name).fingerprint() for name in module.DOMAINS}
    assert len(prints) == len(module.DOMAINS)


def test_a_limit(root: Path) -> None:
    small = opened(root, "mnistm", limit=144)
    assert small.class_counts().sum() == small.size() == 144
    assert set(np.abs(small.class_counts() - 14.4) < 2) == {True}
    full = opened(root, "mnistm")
    assert np.array_equal(everything(small), everything(full)[small.rows])
    assert np.array_equal(small.rows, opened(root, "mnist", limit=144).rows)


@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("rotated_15", ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"), "/MNIST/raw"),
        ("usps", ("usps.bz2", "usps.t.bz2"), ""),
        ("svhn", ("train_32x32.mat", "test_32x32.mat"), ""),
    ],
)
def test_missing_files(tmp_path: Path, name: str, files: tuple[str, ...], folder: str) -> None:
    with pytest.raises(FilesMissingError) as caught:
        opened(tmp_path, name)
    text, reader = str(caught.value), readers.READERS.get(name, readers.READERS["mnist"])
    assert f" in `{tmp_path}{folder}`" in text
    assert "Write `dataset_options.download=true`" in text
    assert f"(dataset `torchvision_digits`, domain `{name}`)" in text
    assert all(f"`{file}`" in text for file in files)
    assert all(address in text for address in reader.addresses())


def test_addresses_are_those_of_torchvision() -> None:
    for name, kind in (("mnist", torchvision.datasets.MNIST), ("fashion", torchvision.datasets.FashionMNIST)):
        reader = readers.READERS[name]
        assert reader.addresses() == kind.mirrors
        assert [f"{path.name}.gz" for path in reader.files(Path("nowhere"))] == [file for file, _ in kind.resources]
    assert readers.READERS["svhn"].addresses()[1] == torchvision.datasets.SVHN.split_list["test"][0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def magic(path: Path) -> None:
    path.write_bytes(b"\1\2\3\4" + path.read_bytes()[4:])


def shape(path: Path) -> None:
    path.write_bytes(idx(np.zeros((600, 20, 20), dtype=np.uint8)))


def text(path: Path) -> None:
    path.write_text("404: not found")


IMAGES, LABELS = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "file", "harm"),
    [
        *[("mnist", IMAGES, harm) for harm in (cut, emptied, magic, text)],
        *[("mnist", LABELS, harm) for harm in (cut, emptied, magic, text)],
        *[("usps", "usps.t.bz2", harm) for harm in (cut, emptied, text)],
        *[("svhn", "train_32x32.mat", harm) for harm in (cut, emptied, text)],
    ],
)
def test_damaged_files(root: Path, name: str, file: str, harm: Callable[[Path], None]) -> None:
    opened(root, name)
    harm(root / file)
    with pytest.raises(MalformedDataError) as caught:
        opened(root, name)
    assert f"`{root / file}`, " in str(caught.value)
    assert "Delete it and fetch it again" in str(caught.value)
    assert f"domain `{name}`" in str(caught.value)


def test_files_of_another_kind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape(root / IMAGES)
    with pytest.raises(MalformedDataError, match="600 pictures of 20×20 pixels in place of 28×28"):
        opened(root, "mnist")
    write_idx(root / "MNIST" / "raw", (TRAIN[0], TRAIN[1][:-1]), TEST)
    with pytest.raises(MalformedDataError, match="600 pictures and 599 labels"):
        opened(root, "mnist")
    write_idx(root / "MNIST" / "raw", (TRAIN[0], TRAIN[1] + 5), TEST)
    with pytest.raises(MalformedDataError, match=r"label 1[0-4], which is not in 0 to 9"):
        opened(root, "mnist")
    scipy.io.savemat(str(root / "test_32x32.mat"), {"nothing": np.zeros(3)})
    table = dict(torchvision.datasets.SVHN.split_list)
    table["test"] = [*table["test"][:2], hashlib.md5((root / "test_32x32.mat").read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    with pytest.raises(MalformedDataError) as caught:
        opened(root, "svhn")
    assert f"`{root}/test_32x32.mat`, KeyError" in str(caught.value)


def test_another_checksum(root: Path) -> None:
    write = (root / "usps.bz2").read_bytes()
    (root / "usps.bz2").write_bytes((root / "usps.t.bz2").read_bytes())
    with pytest.raises(MalformedDataError, match="another MD5 checksum than"):
        opened(root, "usps")
    (root / "usps.bz2").write_bytes(write)
    opened(root, "usps")


@pytest.fixture
def served(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on loopback that has all files, packed as the publishers have them."""
    write_idx(root / "mirror", TRAIN, TEST, packed=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download_fetches_what_is_missing(
    root: Path, tmp_path_factory: pytest.TempPathFactory, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, kind = tmp_path_factory.mktemp("fetched") / "new", torchvision.datasets.MNIST
    sums = [(name, hashlib.md5((root / "mirror" / name).read_bytes()).hexdigest()) for name, _ in kind.resources]
    monkeypatch.setattr(kind, "resources", sums)
    monkeypatch.setattr(kind, "mirrors", [f"{served}/mirror/"])
    for listed in (torchvision.datasets.USPS, torchvision.datasets.SVHN):
        table = {split: [f"{served}/{name}", name, md5] for split, (_, name, md5) in listed.split_list.items()}
        monkeypatch.setattr(listed, "split_list", table)
    for name in ("mnist", "usps", "svhn"):
        with pytest.raises(FilesMissingError):
            opened(there, name)
        assert np.array_equal(everything(opened(there, name, download=True)), everything(opened(root, name)))
        assert opened(there, name).fingerprint() == opened(root, name).fingerprint()

    def fetch(*_: Any) -> None:
        raise AssertionError("nothing was missing")

    monkeypatch.setattr(files, "_fetch", fetch)
    opened(there, "mnist", download=True)


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {split: [(tmp_path / "no").as_uri(), "usps.bz2", "0" * 32] for split in ("train", "test")}
    monkeypatch.setattr(torchvision.datasets.USPS, "split_list", table)
    with pytest.raises(MalformedDataError) as caught:
        opened(tmp_path / "there", "usps", download=True)
    assert "the download of USPS" in str(caught.value)
    assert (tmp_path / "no").as_uri() in str(caught.value)


def test_pickles_of_older_versions_are_not_opened(root: Path) -> None:
    folder = root / "MNIST" / "processed"
    folder.mkdir()
    for name in ("training.pt", "test.pt"):
        (folder / name).write_bytes(b"no torch file")
    assert opened(root, "mnist").size() == 720


def test_wrong_options_and_no_root(root: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown option `downlod`"):
        TorchvisionDigits({"downlod": True}, root, 0)
    with pytest.raises(ConfigError, match="must be true or false, got 1"):
        TorchvisionDigits({"download": 1}, root, 0)
    with pytest.raises(MalformedDataError, match="`root` must name the folder of the files, got null"):
        TorchvisionDigits({}, None, 0)
