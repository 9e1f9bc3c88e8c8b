"""The `image_folder` dataset: the folder tree, its index, and the cache of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from difc_ray.config import DataProblems, check, check_data, load_config, resolve
from difc_ray.data import DATASETS, MalformedDataError, open_domain, open_family
from difc_ray.data.image_folder import cache as cache_module
from difc_ray.data.image_folder import index as index_module
from difc_ray.data.image_folder import (
    read_index,
)
from difc_ray.errors import ConfigError
from difc_ray.step.factory import family_of
from tests.pictures import SIDE, forget, opened, picture, tree

pytestmark = pytest.mark.usefixtures("own_cache")


# The folder tree.


def test_classes_are_united_in_natural_order_and_junk_is_ignored(tmp_path: Path) -> None:
    root = tree(tmp_path, {"photo": {"class10": 2, "class2": 1}, "art": {"class1": 1, "class2": 2}})
    for junk in (".ipynb_checkpoints/x.png", "photo/.hidden/x.png", "photo/class2/.x.png", "photo/__MACOSX/x.png",
                 "__MACOSX/photo/class3/x.png", "photo/loose.png", "loose.png"):  # fmt: skip
        picture(root / junk)
    for junk in (".DS_Store", "Thumbs.db", "notes.txt"):
        (root / "photo" / "class2" / junk).write_bytes(b"junk")
    (root / "empty" / "class9").mkdir(parents=True)
    picture(root / "photo" / "class2" / "deep" / "er" / "x.jpeg")
    family = open_family("image_folder", {}, root, 0, SIDE)
    assert family.class_names == ("class1", "class2", "class10")
    assert family.domain_names() == ("art", "photo")
    assert family.image_shape == (3, SIDE, SIDE)
    assert [family.load(name).class_counts().tolist() for name in ("art", "photo")] == [[1, 2, 0], [0, 2, 2]]
    assert opened(root, "photo").path_of(1) == "photo/class2/deep/er/x.jpeg"
    assert open_family("image_folder", {}, root, 0).image_shape == (3, 224, 224)


def test_order_is_that_of_names_not_of_the_disk(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in np.random.default_rng(0).permutation(30)]
    for root, order in ((tmp_path / "one", names), (tmp_path / "two", sorted(names))):
        for name in order:
            picture(root / "a" / "cat" / name)
            picture(root / "a" / "dog" / name)
    one, two = opened(tmp_path / "one", "a"), opened(tmp_path / "two", "a")
    assert one.fingerprint() == two.fingerprint()
    assert [one.path_of(i) for i in range(60)] == [two.path_of(i) for i in range(60)]


ERRORS: dict[str, tuple[dict[str, dict[str, int]], str]] = {
    "no images": ({}, "`root` must hold pictures, got none in "),
    "one class": ({"a": {"cat": 2}, "b": {"cat": 1}}, "at least two classes, got one, `cat`"),
    "class that does not print": ({"a": {"cat\x1b[1m": 1, "dog": 1}}, r"the name of a class must be printable text"),
    "domain that is no UTF-8": ({os.fsdecode(b"\xff"): {"cat": 1, "dog": 1}}, r"the name of a domain must be"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_unusable_roots(tmp_path: Path, kind: str) -> None:
    counts, words = ERRORS[kind]
    tree(tmp_path, counts)
    with pytest.raises(MalformedDataError) as raised:
        open_family("image_folder", {}, tmp_path, 0)
    assert words in str(raised.value)
    assert str(raised.value).isprintable()


def asked(root: Path, *more: str) -> list[str]:
    return ["dataset=image_folder", f"root={root}", "sources=photo,art", "target=sketch", "batch_size=4", *more]


def test_mistakes_are_told_before_a_run(tmp_path: Path) -> None:
    root = tree(tmp_path, {"photo": {"cat": 9, "dog": 9}, "art": {"dog": 9, "cat": 9}, "sketch": {"cat": 1, "fox": 2}})
    with pytest.raises(ConfigError, match=r"got `phto` .* Did you mean `photo`\?"):
        load_config(None, ["dataset=image_folder", f"root={root}", "sources=phto,art", "target=sketch"])
    config = resolve(load_config(None, asked(root, "image_size=8", "model=mlp")))
    with pytest.raises(DataProblems, match=r"target domain `sketch` must have examples in a source, got none of `fox`"):
        check_data(config, family_of(config))
    with pytest.raises(ConfigError, match=r"`image_size` must suit dataset `digits`, got 32 \(command line\)\. Its im"):
        load_config(None, ["image_size=32"])
    assert load_config(None, ["image_size=28"]).image_size == 28
    for option, words in (
        ("max_pixels=0", "an integer >= 1"), ("follow_links=1", "true or false"), ("classes=cat,cat", "different"),
        ("manifest=true", "a path"), ("max_pixel=7", "Did you mean `max_pixels`?"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="`dataset_options` must suit") as raised:
            load_config(None, asked(root, f"dataset_options.{option}"))
        assert words in str(raised.value)
    with pytest.raises(DataProblems, match="`root` must be a folder, got "):
        load_config(None, asked(root / "nowhere"))
    with pytest.raises(DataProblems, match="`root` must name the folder of the images, got null"):
        load_config(None, ["dataset=image_folder", "sources=a,b", "target=c"])
    assert check(config) == []


def test_fingerprint_is_of_names_sizes_and_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 5, "dog": 5}, "b": {"cat": 1}})
    first = opened(root, "a").fingerprint()
    assert opened(root, "a", seed=7).fingerprint() == first
    os.utime(root / "a" / "cat" / "000.png", (1, 1))  # a copy of the data has other times
    forget()
    assert opened(root, "a").fingerprint() == first
    picture(root / "a" / "cat" / "000.png", size=50)
    forget()
    assert opened(root, "a").fingerprint() != first
    renamed = opened(root, "a").fingerprint()
    (root / "a" / "cat").rename(root / "a" / "cow")
    assert opened(root, "a").fingerprint() not in (first, renamed)


# The cache.


def cached(root: Path) -> Path:
    (file,) = cache_module.cache_folder().glob("images-*.npz")
    assert not file.is_relative_to(root)
    return file


def test_cache_is_used_and_a_changed_folder_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": {"cat": 3, "dog": 3}, "b": {"cow": 2}})
    (root / "a" / "cat" / os.fsdecode(b"\xff\n.png")).write_bytes(b"x")
    built = read_index(root)
    forget()
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "_numbered", None)  # would fail
        again = read_index(root)
    assert (again.root, again.class_names, again.fingerprint) == (built.root, built.class_names, built.fingerprint)
    for name, part in built.parts.items():
        assert again.parts[name].files == part.files
        assert again.parts[name].listed == part.listed
        for array in ("labels", "sizes", "splits"):
            left, right = getattr(again.parts[name], array), getattr(part, array)
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)
    picture(root / "b" / "cow" / "new.png")  # noticed at once: the folder is another
    assert len(read_index(root).parts["b"].files) == 3
    forget()
    picture(root / "b" / "cow" / "new.png", size=70)  # in place
    assert read_index(root).parts["b"].sizes.tolist() != built.parts["b"].sizes.tolist()
    assert not list(cache_module.cache_folder().glob(".images-*"))


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text", "other key"])
def test_damaged_cache_is_not_used(tmp_path: Path, harm: str) -> None:
    root = tree(tmp_path / "root", {"a": {"cat": 3, "dog": 3}})
    built = read_index(root)
    file = cached(root)
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        at = content.index(b"a/cat/000.png")
        content[at : at + 1] = b"z"
    if harm == "other key":
        tree(tmp_path / "other", {"a": {"cat": 3, "dog": 3}})
        read_index(tmp_path / "other")
        (other,) = set(cache_module.cache_folder().glob("*.npz")) - {file}
        content = bytearray(other.read_bytes())
    file.write_bytes({"cut": content[:-50], "empty": b"", "text": b"no archive"}.get(harm, bytes(content)))
    forget()
    assert read_index(root).parts["a"].files == built.parts["a"].files


def test_without_a_place_for_the_cache_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = tree(tmp_path / "root", {"a": {"cat": 3, "dog": 3}})
    for _ in range(2):
        assert len(read_index(root).parts["a"].files) == 6
        forget()


def test_index_of_many_files_is_fast(tmp_path: Path) -> None:
    for domain in "abcd":
        for name in ("cat", "dog"):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(500):
                (tmp_path / domain / name / f"{i}.jpg").touch()
    started = time.process_time()
    assert sum(len(part.files) for part in read_index(tmp_path).parts.values()) == 4000
    assert time.process_time() - started < 3  # 20,000 in that time are measured elsewhere; here others may be running


def test_a_link_to_a_folder_above_gives_no_pictures_another_class(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 3, "dog": 3}, "b": {"cat": 3, "dog": 3}})
    for number, target in enumerate((root / "a", root / "a" / "cat", root)):
        (root / "a" / "cat" / f"link{number}").symlink_to(target)
    assert opened(root, "a").class_counts().tolist() == [3, 3]


def test_family_is_registered_and_a_first_bad_picture_stops_before_the_run(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    (root / "a" / "cat" / "000.png").write_bytes(b"")
    family = DATASETS.get("image_folder")({}, root, 0)
    with pytest.raises(MalformedDataError, match=r"got `a/cat/000\.png`, an empty file"):
        open_domain("image_folder", family, "a")
    with pytest.raises(ConfigError, match="Unknown domain `b`"):
        family.load("b")
