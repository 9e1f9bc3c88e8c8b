"""The `fashion` dataset, on small files of its format and on FashionMNIST itself."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.datasets
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from difc_ray.data import Fashion, MalformedDataError, open_domain, open_family
from difc_ray.data.published import fashion as module
from difc_ray.data.published.collection import ShiftedDomain
from difc_ray.errors import ConfigError
from tests.cli.shell import environment
from tests.published import needs_fashion, part, write_idx

DOMAINS = ("plain", "photo", "rotated", "sketch")
TRAIN, TEST = part(120, seed=0), part(20, seed=1)  # 1,200 and 200 pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    write_idx(folder / "FashionMNIST" / "raw", TRAIN, TEST)
    return folder


def opened(root: Path | None, name: str, seed: int = 0, image_size: int | None = None, **options: Any) -> ShiftedDomain:
    domain = open_domain("fashion", open_family("fashion", options, root, seed, image_size), name)
    assert isinstance(domain, ShiftedDomain)
    return domain


def everything(domain: ShiftedDomain) -> np.ndarray:
    """All pictures in the size of the images, as bytes."""
    return domain.fitted(domain.split_indices("all"))


def published(domain: ShiftedDomain) -> np.ndarray:
    """What the pictures were made of."""
    return np.concatenate([TRAIN[0], TEST[0]])[domain.rows]


def test_the_family(root: Path) -> None:
    family = open_family("fashion", {}, root, 0)
    assert family.domain_names() == DOMAINS
    assert len(set(family.class_names)) == 10
    assert family.class_names[0] == "t-shirt"
    assert family.image_shape == (3, 28, 28)


def test_no_article_is_in_two_domains_and_none_is_lost(root: Path) -> None:
    rows = np.concatenate([opened(root, name).rows for name in DOMAINS])
    assert sorted(rows.tolist()) == list(range(1400))
    for name in DOMAINS:
        domain = opened(root, name, imbalance=1)
        assert domain.class_counts().tolist() == [35] * 10
        assert np.array_equal(domain.labels, np.concatenate([TRAIN[1], TEST[1]])[domain.rows])


@pytest.mark.parametrize("name", DOMAINS)
def test_splits_keep_the_publishers_test_part(root: Path, name: str) -> None:
    domain = opened(root, name, imbalance=1)
    splits = {split: domain.split_indices(split) for split in ("train", "val", "test")}
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(350))
    assert (domain.rows[splits["test"]] >= 1200).all()
    assert domain.class_counts("test").tolist() == [5] * 10
    assert (domain.rows[np.concatenate([splits["train"], splits["val"]])] < 1200).all()
    assert len(splits["val"]) == round(300 / 9)
    assert set(domain.class_counts("val").tolist()) <= {3, 4}
    assert (np.diff(domain.rows) > 0).all()


def test_only_train_has_a_tail_and_the_domain_as_a_whole_has_none(root: Path) -> None:
    full, thin = opened(root, "plain", imbalance=1), opened(root, "plain", imbalance=0.1)
    counts = thin.class_counts("train")
    most = int(full.class_counts("train").min())
    expected = [max(1, round(most * 0.1 ** (rank / 9))) for rank in range(10)]
    assert sorted(counts.tolist(), reverse=True) == expected
    assert sorted(module.ranks().tolist()) == list(range(10))
    assert counts[np.argsort(module.ranks())].tolist() == expected
    for split in ("val", "test", "all"):
        assert np.array_equal(thin.split_indices(split), full.split_indices(split))
    assert set(thin.split_indices("train").tolist()) < set(full.split_indices("train").tolist())
    assert thin.class_counts("all").tolist() == [35] * 10
    assert thin.fingerprint() == full.fingerprint()
    assert np.array_equal(opened(root, "plain").split_indices("train"), thin.split_indices("train"))  # the default
    assert opened(root, "sketch", imbalance=0.1).class_counts("train").tolist() == counts.tolist()  # the same are rare


def test_the_seed_decides_splits_and_no_content(root: Path) -> None:
    first, second = opened(root, "photo", seed=0), opened(root, "photo", seed=1)
    assert first.fingerprint() == second.fingerprint()
    assert np.array_equal(everything(first), everything(second))
    assert not np.array_equal(first.split_indices("val"), second.split_indices("val"))
    assert np.array_equal(first.split_indices("test"), second.split_indices("test"))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_limit_thins_every_part_and_changes_no_picture(root: Path, name: str) -> None:
    full, small = opened(root, name), opened(root, name, limit=140, imbalance=1)
    assert (small.size(), small.size("test")) == (140, 20)
    assert small.class_counts().tolist() == [14] * 10
    assert set(small.rows.tolist()) < set(full.rows.tolist())
    assert np.array_equal(everything(small), everything(full)[np.isin(full.rows, small.rows)])
    assert opened(root, name, limit=10**6).size() == 350
    assert small.fingerprint() != full.fingerprint()


def test_plain_is_as_published(root: Path) -> None:
    domain = opened(root, "plain")
    assert np.array_equal(everything(domain), np.repeat(published(domain)[..., None], 3, axis=3))
    images = domain.images_at(np.arange(5))
    assert images.shape == (5, 3, 28, 28)
    assert np.allclose(images[:, 0], published(domain)[:5] / 127.5 - 1, atol=1e-6)


def test_photo_shows_a_photo_where_the_article_is_black_and_the_article_where_it_is_bright(root: Path) -> None:
    domain = opened(root, "photo")
    grey, found = published(domain).astype(np.int64), everything(domain).astype(np.int64)
    bright = grey >= 64
    assert np.array_equal(found[bright], np.repeat(grey[bright][:, None], 3, axis=1))
    for i in range(0, 350, 120):  # two black rows at the top tell the place in one of the photos
        places = [
            photo[top : top + 28, left : left + 28]
            for photo in load_sample_images().images
            for top, left in matching(photo, found[i, :2])
        ]
        alpha = np.minimum(1, 4 * grey[i] / 255)[..., None]
        assert any(
            np.abs(alpha * grey[i][..., None] + (1 - alpha) * place - found[i]).max() <= 0.51 for place in places
        )
    assert len({found[i, :2].tobytes() for i in range(350)}) > 330


def matching(photo: np.ndarray, top: np.ndarray) -> list[tuple[int, int]]:
    """Corners of the places where two rows of 28 pixels are in a photo."""
    windows = np.lib.stride_tricks.sliding_window_view(photo.astype(np.int64), (2, 28, 3))[:, :, 0]
    return [(int(y), int(x)) for y, x in np.argwhere((windows == top).all(axis=(2, 3, 4))) if y + 28 <= len(photo)]


def test_rotated_is_what_torchvision_makes_of_the_angles(root: Path) -> None:
    domain = opened(root, "rotated")
    angles = module.shift_of("rotated", 1400).degrees_N[domain.rows]
    assert angles.min() < -70
    assert angles.max() > 70
    assert abs(angles.mean()) < 10
    found = everything(domain)
    for i in range(0, 350, 35):
        image = transforms.to_pil_image(torch.from_numpy(published(domain)[i]))
        turned = transforms.rotate(image, float(angles[i]), interpolation=InterpolationMode.BILINEAR, fill=0)
        assert np.array_equal(found[i, :, :, 1], np.asarray(turned))


def test_sketch_is_the_gradient_dark_on_white(root: Path) -> None:
    domain = opened(root, "sketch")
    found = everything(domain)
    assert np.median(found) > 127
    for i in range(0, 350, 35):
        grey = published(domain)[i].astype(np.float64)
        length = np.hypot(*(scipy.ndimage.sobel(grey, axis=axis, mode="constant") for axis in (0, 1)))
        expected = 255 - 255 * np.sqrt(length / length.max())
        assert np.abs(found[i, :, :, 0] - expected).max() <= 0.51
        assert found[i].min() == 0


def test_a_black_picture_is_a_white_sketch() -> None:
    from difc_ray.data.published.shifts import Sketched

    assert (Sketched().applied(np.zeros((28, 28, 1), dtype=np.uint8), 0) == 255).all()


def test_the_image_size_is_honoured(root: Path) -> None:
    domain = opened(root, "photo", image_size=32)
    assert domain.image_shape == (3, 32, 32)
    assert domain.images_at(np.arange(2)).shape == (2, 3, 32, 32)
    assert domain.fingerprint() != opened(root, "photo").fingerprint()


def test_the_fingerprint_follows_pictures_labels_and_shift(root: Path, tmp_path: Path) -> None:
    prints = {name: opened(root, name).fingerprint() for name in DOMAINS}
    assert len(set(prints.values())) == 4
    pictures = TRAIN[0].copy()
    row = int(opened(root, "plain").rows[0])
    pictures[row, 20, 20] ^= 1
    write_idx(tmp_path / "a", (pictures, TRAIN[1]), TEST, packed=True)
    changed = {name: opened(tmp_path / "a", name).fingerprint() for name in DOMAINS}
    assert [name for name in DOMAINS if changed[name] != prints[name]] == ["plain"]
    assert np.array_equal(everything(opened(tmp_path / "a", "photo")), everything(opened(root, "photo")))


PROGRAM = """
import sys; from pathlib import Path; from difc_ray.data import open_family
family = open_family("fashion", {"limit": 200}, Path(sys.argv[1]), 5)
for name in family.domain_names():
    domain = family.load(name)
    print(domain.fingerprint(), domain.batch(5, 3, 8).images.double().sum().item(), domain.split_indices("train").sum())
"""


@pytest.mark.process
def test_another_process_makes_the_same(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)], env=environment({"PYTHONHASHSEED": "77"}),
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    for name, line in zip(DOMAINS, done.stdout.splitlines(), strict=True):
        domain = opened(root, name, seed=5, limit=200)
        total = domain.batch(5, 3, 8).images.double().sum().item()
        assert line == f"{domain.fingerprint()} {total} {domain.split_indices('train').sum()}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"imbalance": 0}, "`dataset_options.imbalance` must be a number in (0, 1], got 0"),
        ({"imbalance": 1.5}, "got 1.5"),
        ({"imbalance": True}, "got True"),
        ({"imbalance": "a"}, "got 'a'"),
        ({"imbalance": float("nan")}, "got nan"),
        ({"limit": 99}, "`dataset_options.limit` must be an integer >= 100 or null, got 99"),
        ({"limit": 200.5}, "got 200.5"),
        ({"limit": True}, "got True"),
        ({"download": "yes"}, "`dataset_options.download` must be true or false, got 'yes'"),
        ({"limits": 5}, "Unknown option `limits` of dataset `fashion`. Did you mean `limit`?"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str, root: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Fashion(options, root, 0)
    assert words in str(caught.value)


def test_a_download_needs_a_root() -> None:
    with pytest.raises(ConfigError, match="got no `root`"):
        Fashion({"download": True}, None, 0)


def test_missing_files_are_named_with_package_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE_FOLDER", tmp_path / "debian")
    with pytest.raises(MalformedDataError) as caught:
        opened(None, "plain")
    for words in (
        "`apt-get install dataset-fashion-mnist` puts them there",
        "Or name their folder, `root=PATH`",
        "`root=PATH dataset_options.download=true`, and torchvision fetches them from",
        torchvision.datasets.FashionMNIST.mirrors[0],
        "no `train-images-idx3-ubyte`",
        "`t10k-labels-idx1-ubyte`",
        f" in `{tmp_path}/debian` ",
        "dataset `fashion`, domain `plain`",
    ):
        assert words in str(caught.value)
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    write_idx(tmp_path / "FashionMNIST" / "raw", TRAIN, TEST)
    (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(MalformedDataError) as caught:
        opened(tmp_path, "plain")
    assert f"no `t10k-labels-idx1-ubyte` in `{tmp_path}/FashionMNIST/raw`" in str(caught.value)
    assert "apt-get" not in str(caught.value)


def test_a_cut_packed_file_is_told_with_its_path(tmp_path: Path) -> None:
    write_idx(tmp_path, TRAIN, TEST, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MalformedDataError) as caught:
        opened(tmp_path, "plain")
    assert f"`{path}`" in str(caught.value)
    path.write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(MalformedDataError) as caught:
        opened(tmp_path, "plain")
    assert f"`{path}`" in str(caught.value)


@needs_fashion()
def test_the_real_articles() -> None:
    """70,000 of them; plain ones are as likely bright in the middle as sketches are bright at the border."""
    domains = {name: opened(None, name, imbalance=0.01) for name in DOMAINS}
    assert sorted(np.concatenate([domain.rows for domain in domains.values()]).tolist()) == list(range(70_000))
    for domain in domains.values():
        assert domain.class_counts().tolist() == [1750] * 10
        assert domain.class_counts("test").tolist() == [250] * 10
        assert sorted(domain.class_counts("train").tolist())[::9] == [13, 1333]
    border = {name: domain.fitted(np.arange(0, 17_500, 50))[:, 0].mean() for name, domain in domains.items()}
    assert border["plain"] < border["photo"] < border["sketch"]
