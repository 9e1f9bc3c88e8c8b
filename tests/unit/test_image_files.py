"""Files of `image_folder`: what odd ones are read as, why bad ones are not, and what takes their place."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from difc_ray.data import MalformedDataError
from difc_ray.data.image_folder import (
    BadImage,
    decode,
    decode_fitted,
    read_index,
    shown,
)
from tests.pictures import SIDE, colour_of, forget, opened, picture, tree

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_a_socket_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": {"cat": 2, "dog": 2}})
    monkeypatch.chdir(root / "a" / "cat")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert len(read_index(root).parts["a"].files) == 4
