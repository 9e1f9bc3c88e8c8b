"""Pictures on disk: the index and its cache, lists and manifests, hostile files, and what replaces bad ones."""

from __future__ import annotations

import csv
import io
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from difc_ray.config import DataProblems, check, check_data, load_config, resolve
from difc_ray.domains import DATASETS, MalformedDataError, open_domain, open_family
from difc_ray.domains.image_folder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BadImage,
    ImageDomain,
    decode,
    decode_fitted,
    read_index,
    shown,
)
from difc_ray.domains.image_folder import cache as cache_module
from difc_ray.domains.image_folder import index as index_module
from difc_ray.errors import ConfigError
from difc_ray.local_step import family_of

SIDE = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the cache of another, or of whoever runs them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    forget()


def forget() -> None:
    """As in another process."""
    index_module._READ.clear()


def picture(
    path: Path, colour: tuple[int, ...] | int = (255, 0, 0), mode: str = "RGB", size: int = 6, **save: Any
) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), colour).save(path, **save)
    return path


def tree(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    """Domain -> class -> pictures; the red value of a picture tells its number."""
    for domain, classes in counts.items():
        for name, count in classes.items():
            for i in range(count):
                picture(root / domain / name / f"{i:03}.png", (i, 0, 0))
    return root


def opened(root: Path | None, name: str, seed: int = 0, on_bad_image: Any = "raise", **options: Any) -> ImageDomain:
    domain = open_family("image_folder", options, root, seed, SIDE, on_bad_image).load(name)
    assert isinstance(domain, ImageDomain)
    return domain


def colour_of(image: np.ndarray) -> list[int]:
    """The mean colour of a normalised picture in bytes."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    return [round(each) for each in ((image.mean(axis=(1, 2)) * std + mean) * 255).tolist()]


# Pictures that are odd, and what they are read as.


def png_16(path: Path) -> None:
    Image.fromarray(np.full((5, 5), 65_535 // 2, dtype=np.uint16)).save(path)


def exif_turned(path: Path) -> None:
    """Stored with red on the left; the tag says that the left side is the top."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :4, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, format="PNG", exif=exif)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(path, format="WEBP", save_all=True, append_images=frames[1:], lossless=True)


def pages(path: Path) -> None:
    Image.new("RGB", (6, 6), "red").save(path, save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")])


def palette_with_hole(path: Path) -> None:
    image = Image.new("P", (6, 6), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(path, transparency=0)


ODD: dict[str, tuple[str, Callable[[Path], Any], list[int]]] = {
    "rgb": ("a.png", lambda p: picture(p, (10, 200, 30)), [10, 200, 30]),
    "grey": ("a.png", lambda p: picture(p, 90, "L"), [90, 90, 90]),
    "one bit": ("a.tif", lambda p: picture(p, 1, "1"), [255, 255, 255]),
    "CMYK": ("a.tiff", lambda p: picture(p, (0, 255, 255, 0), "CMYK"), [255, 0, 0]),
    "16 bits": ("a.png", png_16, [127, 127, 127]),
    "palette": ("a.bmp", lambda p: picture(p, 0, "P"), [0, 0, 0]),
    "palette with a hole": ("a.png", palette_with_hole, [255, 255, 255]),
    "alpha 0 on white": ("a.png", lambda p: picture(p, (9, 9, 9, 0), "RGBA"), [255, 255, 255]),
    "alpha 51 on white": ("a.webp", lambda p: picture(p, (255, 0, 0, 51), "RGBA", lossless=True), [255, 204, 204]),
    "grey and alpha": ("a.png", lambda p: picture(p, (0, 255), "LA"), [0, 0, 0]),
    "animated: first frame": ("a.webp", animated, [255, 0, 0]),
    "pages: the first": ("a.tif", pages, [255, 0, 0]),
    "1x1": ("a.png", lambda p: picture(p, (1, 2, 3), size=1), [1, 2, 3]),
    "a PNG named .jpg": ("a.jpg", lambda p: picture(p, (7, 8, 9), format="PNG"), [7, 8, 9]),
    "newline": ("a\nb.png", lambda p: picture(p, (7, 8, 9)), [7, 8, 9]),
    "upper case": ("A.PNG", lambda p: picture(p, (7, 8, 9)), [7, 8, 9]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_read(tmp_path: Path, kind: str) -> None:
    name, write, expected = ODD[kind]
    write(tmp_path / name)
    image = decode_fitted(str(tmp_path / name), SIDE)
    assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert (image == expected).all()
    assert (decode(str(tmp_path / name)) == expected).all()


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif_turned(tmp_path / "a.png")
    red = decode_fitted(str(tmp_path / "a.png"), 8)[..., 0]
    assert (red[:4] > 240).all()  # red is above, not on the left
    assert (red[4:] < 10).all()


def test_resize_averages_over_all_pixels(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    image = decode_fitted(str(tmp_path / "a.png"), SIDE)
    assert np.abs(image - 127.5).max() <= 4


# Files that give no picture, and why.


def png_of(width: int, height: int) -> bytes:
    """The header of a picture that is not there."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def truncated(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def leads_out(path: Path) -> None:
    path.symlink_to(picture(path.parents[3] / "elsewhere" / "a.png"))


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated": ("x.jpg", truncated, "truncated"),
    "zero bytes": ("x.png", lambda p: p.write_bytes(b""), "an empty file"),
    "text": ("x.jpg", lambda p: p.write_text("no picture"), "no picture in a known format"),
    "PostScript": ("x.jpg", lambda p: p.write_text("%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 5 5\n"), "known format"),
    "bomb": ("x.png", lambda p: p.write_bytes(png_of(60_000, 60_000)), "60000×60000 pixels, more than `max_pixels"),
    "float": ("x.tif", lambda p: picture(p, 1, "F"), "floating-point pixels"),
    "damaged": ("x.png", lambda p: p.write_bytes(png_of(4, 4)[:40] + b"?" * 40), ""),
    "dangling link": ("x.png", lambda p: p.symlink_to("nowhere.png"), "a link to nothing"),
    "circle": ("x.png", lambda p: p.symlink_to(p.name), "a link in a circle"),
    "dangling link out of the root": ("x.png", lambda p: p.symlink_to("/nowhere/x.png"), "a link to nothing"),
    "link out of the root": ("x.png", leads_out, "a path out of `root`"),
    "name with newline": ("x\ny.png", lambda p: p.write_bytes(b""), "an empty file"),
    "name that is no UTF-8": (os.fsdecode(b"x\xff.png"), lambda p: p.write_bytes(b""), "an empty file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_raise_or_are_replaced(tmp_path: Path, kind: str) -> None:
    name, write, reason = BAD[kind]
    root = tree(tmp_path / "root", {"a": {"cat": 12, "dog": 12}})
    write(root / "a" / "dog" / name)
    strict = opened(root, "a")
    assert strict.size() == 25
    faults = {i: fault for i in range(25) if (fault := strict.fault(i))}
    (position,) = faults
    assert reason in faults[position]
    with pytest.raises(MalformedDataError) as raised:
        strict.images_at(np.arange(25))
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert f"got `a/dog/{shown(name)}`, " in sentence
    assert "dataset `image_folder`, domain `a`" in sentence
    assert "on_bad_image=skip" in sentence
    lenient = opened(root, "a", on_bad_image="skip")
    images = lenient.images_at(np.arange(25))
    (other,) = lenient.replacements.values()
    assert lenient.replacements.keys() == {position}
    assert lenient.labels[other] == lenient.labels[position]
    assert np.array_equal(images[position], images[other])


def test_unreadable_file_and_odd_kinds_of_files(tmp_path: Path) -> None:
    closed = picture(tmp_path / "a.png")
    closed.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(BadImage, match="no permission"):
            decode(str(closed))
    closed.chmod(0o600)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="no regular file"):
        decode(str(tmp_path / "pipe.png"))
    with pytest.raises(BadImage, match="a folder"):
        decode(str(tmp_path))
    with pytest.raises(BadImage, match="no such file"):
        decode(str(tmp_path / "b.png"))


def test_limit_of_pixels_is_an_option(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    assert "6×6 pixels, more than `max_pixels = 35`" in opened(root, "a", max_pixels=35).fault(0)
    assert opened(root, "a", max_pixels=36).fault(0) == ""
    limit = Image.MAX_IMAGE_PIXELS
    (root / "a" / "cat" / "000.png").write_bytes(png_of(20_000, 20_000))
    assert "more than" not in opened(root, "a", max_pixels=10**9).fault(0)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_links_are_followed_if_allowed(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"a": {"cat": 2, "dog": 2}})
    leads_out(root / "a" / "dog" / "x.png")
    domain = opened(root, "a", follow_links=True)
    assert [domain.fault(i) for i in range(5)] == [""] * 5
    tree(tmp_path / "far", {"b": {"cat": 1}})
    (root / "b").symlink_to(tmp_path / "far" / "b")
    (root / "b" / "cat" / "again").symlink_to(root / "b" / "cat")  # a circle ends
    forget()
    with pytest.raises(MalformedDataError, match=r"must stay inside `root`, got .*follow_links=true"):
        opened(root, "b")
    assert opened(root, "b", follow_links=True).size() == 1


def test_links_inside_the_root_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 3}})
    (root / "a" / "cat" / "up").symlink_to(root / "a" / "cat")
    (root / "a" / "cat" / "other").symlink_to(root / "a" / "dog")
    (root / "a" / "dog" / "other").symlink_to(root / "a" / "cat")
    assert opened(root, "a").class_counts().tolist() == [5, 5]  # each its own, and the other's through the link


def test_link_inside_the_root_is_a_picture(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    (root / "a" / "dog" / "zz.png").symlink_to("000.png")
    assert opened(root, "a").fault(4) == ""


# What takes the place of a bad picture.


def test_replacement_is_the_next_of_its_class_and_split_whatever_came_before(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 40, "dog": 40}})
    for i in (*range(3, 9), 30, 39):
        (root / "a" / "dog" / f"{i:03}.png").write_bytes(b"bad")
    wanted = opened(root, "a", on_bad_image="skip")
    images = wanted.images_at(np.arange(80))
    bad = {40 + i for i in (*range(3, 9), 30, 39)}
    split_of = {int(i): split for split in ("train", "val", "test") for i in wanted.split_indices(split)}
    for position in bad:  # the rule, said another way
        peers = [i for i in range(40, 80) if split_of[i] == split_of[position]]
        ahead = [i for i in peers if i > position and i not in bad] + [i for i in peers if i not in bad]
        assert wanted.replacements[position] == ahead[0]
        assert colour_of(images[position])[0] == ahead[0] - 40
    shuffled = np.random.default_rng(1).permutation(80)
    other = opened(root, "a", on_bad_image="skip")
    assert np.array_equal(other.images_at(shuffled), images[shuffled])
    batch, same = (opened(root, "a", on_bad_image="skip").batch(3, 7, 16) for _ in range(2))
    assert batch.images.equal(same.images)


def test_skipping_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, {"a": {"cat": 20, "dog": 20}})
    for i in (1, 2):
        (root / "a" / "dog" / f"{i:03}.png").write_bytes(b"bad")
    domain = opened(root, "a", on_bad_image="skip")
    for _ in range(2):
        domain.images_at(np.arange(40))
    (message,) = caplog.messages
    assert "a/dog/001.png" in message
    assert len(domain.replacements) == 2


def test_class_without_any_readable_picture_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 10, "dog": 1}})
    (root / "a" / "dog" / "000.png").write_bytes(b"")
    with pytest.raises(MalformedDataError, match=r"got none of 1 of class `dog`, among them `a/dog/000.png`"):
        opened(root, "a", on_bad_image="skip").images_at(np.arange(11))


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
    started = time.perf_counter()
    assert sum(len(part.files) for part in read_index(tmp_path).parts.values()) == 4000
    assert time.perf_counter() - started < 3  # 20,000 in that time are measured elsewhere; here others may be running


# Split lists and manifests.


def lists(root: Path, lines: dict[str, list[str]]) -> Path:
    for name, text in lines.items():
        (root / name).write_text("\n".join(text) + "\n", encoding="utf-8", errors="surrogateescape")
    return root


def test_split_lists_are_used_and_validation_comes_out_of_train(tmp_path: Path) -> None:
    root = tree(tmp_path, {"real": {"cat": 40, "dog": 40}, "paint": {"cat": 3, "owl": 3}})
    train = [f"real/{name}/{i:03}.png {label}" for label, name in enumerate(("cat", "dog")) for i in range(30)]
    test = [f"real/{name}/{i:03}.png {label}" for label, name in enumerate(("cat", "dog")) for i in range(30, 40)]
    lists(root, {"real_train.txt": train, "real_test.txt": test})
    family = open_family("image_folder", {}, root, 0, SIDE)
    assert (family.domain_names(), family.class_names) == (("paint", "real"), ("cat", "dog", "owl"))
    domain = opened(root, "real")
    names = {
        split: {domain.path_of(i) for i in domain.split_indices(split).tolist()} for split in ("train", "val", "test")
    }
    assert names["test"] == {line.split()[0] for line in test}
    assert names["train"] | names["val"] == {line.split()[0] for line in train}
    assert domain.size("val") == 7  # a ninth of 60
    assert domain.class_counts("val").tolist() in ([3, 4, 0], [4, 3, 0])
    assert opened(root, "real", seed=1).split_indices("val").tolist() != domain.split_indices("val").tolist()
    assert opened(root, "real", seed=1).split_indices("test").tolist() == domain.split_indices("test").tolist()
    assert domain.fault(0) == ""


LIST_ERRORS: dict[str, tuple[dict[str, list[str]], str]] = {
    "one list": ({"a_train.txt": ["a/cat/000.png 0"]}, "got `a_train.txt` without `a_test.txt`"),
    "no label": ({"a_train.txt": ["a/cat/000.png"], "a_test.txt": []}, "must read `path label`, got `a/cat/000.png`"),
    "two classes": (
        {"a_train.txt": ["a/cat/000.png 0", "a/dog/000.png 0"], "a_test.txt": []},
        "label `0` must stand for one class in all lists, got `dog` after `cat` (dataset `image_folder`, "
        "`a_train.txt`, line 2)",
    ),
    "twice": (
        {"a_train.txt": ["a/cat/000.png 0", "a/dog/000.png 1"], "a_test.txt": ["a/./cat/000.png 0"]},
        "listed once in its domain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIST_ERRORS)
def test_wrong_lists(tmp_path: Path, kind: str) -> None:
    lines, words = LIST_ERRORS[kind]
    root = lists(tree(tmp_path, {"a": {"cat": 2, "dog": 2}}), lines)
    with pytest.raises(MalformedDataError) as raised:
        open_family("image_folder", {}, root, 0)
    assert words in str(raised.value)


def test_listed_files_that_are_missing_or_outside_are_bad_files(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"a": {"cat": 2, "dog": 2}})
    picture(tmp_path / "out.png")
    train = ["a/cat/000.png 0", "a/dog/000.png 1", "a/dog/gone.png 1", "../out.png dog"]
    lists(root, {"a_train.txt": train, "a_test.txt": ["a/cat/001.png 0"]})
    domain = opened(root, "a")
    faults = {domain.path_of(i): fault for i in range(5) if (fault := domain.fault(i))}
    assert faults.keys() == {"a/dog/gone.png", "../out.png"}
    assert faults["a/dog/gone.png"] == "no such file"
    assert faults["../out.png"].startswith("a path out of `root`")


def test_a_link_to_a_folder_above_gives_no_pictures_another_class(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 3, "dog": 3}, "b": {"cat": 3, "dog": 3}})
    for number, target in enumerate((root / "a", root / "a" / "cat", root)):
        (root / "a" / "cat" / f"link{number}").symlink_to(target)
    assert opened(root, "a").class_counts().tolist() == [3, 3]


ROWS = [
    {"path": f"{d}/{c}/{i:03}.png", "label": c, "domain": f"the {d}", "split": s}
    for d in ("a", "b") for c in ("cat", "dog") for i, s in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)
]  # fmt: skip


def manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_manifests(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": {"cat": 10, "dog": 10}, "b": {"cat": 10, "dog": 10}})
    file = str(manifest(tmp_path / f"all.{ending}", ROWS))
    domain = opened(root, "the b", manifest=file)
    sizes = {split: domain.class_counts(split).tolist() for split in ("train", "val", "test")}
    assert sizes == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    expected = {row["path"] for row in ROWS if row["split"] == "test" and row["domain"] == "the b"}
    assert {domain.path_of(i) for i in domain.split_indices("test").tolist()} == expected
    assert [domain.fault(i) for i in range(20)] == [""] * 20
    assert opened(None, "the b", manifest=file).fingerprint() == domain.fingerprint()  # beside the manifest
    monkeypatch.chdir(tmp_path)
    arguments = ["dataset=image_folder", f"dataset_options.manifest=all.{ending}", "sources=the a,the b", "target="]
    assert resolve(load_config(None, arguments)).dataset_options == {"manifest": file}  # workers run elsewhere
    plain = [{k: v for k, v in row.items() if k != "split"} for row in ROWS]
    drawn = opened(root, "the b", manifest=str(manifest(tmp_path / f"plain.{ending}", plain)))
    assert [drawn.size(split) for split in ("train", "val", "test")] == [16, 2, 2]


def test_numbered_labels_of_a_manifest_are_of_the_classes_option(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 10, "dog": 10}})
    rows = [{"path": f"a/{c}/000.png", "label": n, "domain": "a"} for c, n in (("cat", "1"), ("dog", "0"))]
    file = str(manifest(tmp_path / "m.csv", rows))
    domain = opened(root, "a", manifest=file, classes=["dog", "cat"])
    assert [(domain.class_names[n], domain.path_of(i)[:5]) for i, n in enumerate(domain.labels)] == [
        ("dog", "a/dog"), ("cat", "a/cat"),
    ]  # fmt: skip
    manifest(tmp_path / "m.csv", [*rows, {"path": "a/cat/001.png", "label": "2", "domain": "a"}])
    with pytest.raises(MalformedDataError, match=r"a label must be a number from 0 to 1 .*, got 2 for `a/cat/001.png`"):
        opened(root, "a", manifest=file, classes=["dog", "cat"])
    manifest(tmp_path / "m.csv", [*rows, {"path": "a/cat/001.png", "label": "dgo", "domain": "a"}])
    with pytest.raises(MalformedDataError, match=r"got `dgo` .* Did you mean `dog`"):
        opened(root, "a", manifest=file, classes=["dog", "cat"])


MANIFEST_ERRORS = {
    "no column": ("path,label\na.png,cat\n", "got `path`, `label` (", "Add `domain`"),
    "empty": ("", "got an empty file", "Add `path` and `label` and `domain`"),
    "empty cell": ("path,label,domain\na.png,,x\n", "must have a `label`, got nothing", "line 2"),
    "wrong split": ("path,label,domain,split\na.png,cat,x,trian\n", "got `trian`", "Did you mean `train`?"),
    "half a split": ("path,label,domain,split\na,b,x,train\nc,d,x,\n", "or none, got domain `x` with both", "line 3"),
    "comma": ("path,label,domain\na,b.png,cat,x\n", "got 4 cells", "in quotes"),
    "quote": ('path,label,domain\n"a.png,cat,x\n', "must be a CSV file", ""),
}


@pytest.mark.parametrize("kind", [*MANIFEST_ERRORS, "missing", "no parquet"])
def test_wrong_manifests(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("m.parquet" if kind == "no parquet" else "m.csv")
    text, *words = MANIFEST_ERRORS.get(kind, ("no", "must be readable" if kind == "missing" else "readable Parquet"))
    if kind != "missing":
        file.write_text(text)
    with pytest.raises(MalformedDataError) as raised:
        open_family("image_folder", {"manifest": str(file)}, tmp_path, 0)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_family_is_registered_and_a_first_bad_picture_stops_before_the_run(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    (root / "a" / "cat" / "000.png").write_bytes(b"")
    family = DATASETS.get("image_folder")({}, root, 0)
    with pytest.raises(MalformedDataError, match=r"got `a/cat/000\.png`, an empty file"):
        open_domain("image_folder", family, "a")
    with pytest.raises(ConfigError, match="Unknown domain `b`"):
        family.load("b")


def test_a_socket_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    monkeypatch.chdir(root / "a" / "cat")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert len(read_index(root).parts["a"].files) == 4
