"""One file on disk to one picture; what is wrong with it becomes a :class:`BadImage` with a reason.

===============================  ==================================================================================
file                             becomes
===============================  ==================================================================================
wrong extension                  what the content is; the name does not count
EXIF orientation                 turned and mirrored upright; an EXIF block that cannot be read is ignored
grey, 1 bit                      three equal channels
palette, CMYK, YCbCr, LAB, HSV   RGB by Pillow's own conversion (Adobe's inverted CMYK included)
alpha, or a transparent colour   composited on white
16 bits, grey                    divided by 257, so that 65,535 is white
16 bits, colour                  the upper eight bits, as Pillow reads them
floating-point pixels            refused: nothing says which number is white
animated, several pages          the first frame
more than `max_pixels`           refused before a pixel is decoded
truncated                        refused
===============================  ==================================================================================

"""

from __future__ import annotations

import errno
import os
import stat
import threading
import warnings
from typing import BinaryIO, Final

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's training pictures by channel (red, green, blue), pixels in [0, 1].

Source: torchvision's reference transforms; the published backbones expect them.
"""

MAX_PIXELS: Final = 89_478_485
"""Default limit on width × height, Pillow's own: a quarter of a gigabyte as RGB."""

FORMATS: Final = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        GifImagePlugin.GifImageFile,
    )
)
"""Decoders that a file may reach; Pillow has others, some of which start programs."""

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPENING: Final = threading.Lock()
_SYSTEM_REASONS: Final = {
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ELOOP: "a link in a circle",
    errno.ENAMETOOLONG: "a name that is too long",
}


class BadImage(Exception):
    """A file that gives no picture; `on_bad_image` decides whether that is an error.

    Args:
        reason: why, as it goes on after "`path`, ".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def shown(path: str) -> str:
    r"""A path as text on one line: bytes that are no UTF-8 and characters that do not print are escaped.

    >>> shown("a\nb"), shown("caf\udce9.png"), shown("café.png")
    ('a\\nb', 'caf\\xe9.png', 'café.png')
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def decode(path: str, max_pixels: int = MAX_PIXELS, enough: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a file: upright, RGB, whole.

    Args:
        path: the file; text as ``os.fsdecode`` gives it.
        max_pixels: largest width × height of the picture in the file.
        enough: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as no side falls below this, which takes
            a fraction of the time; None: at its full size.

    Returns:
        (h, w, 3) bytes, not to be written to; the same for the same bytes in the file and version of Pillow.

    Raises:
        BadImage: the file gives no picture; the reason says why.
    """
    return np.asarray(_read(path, max_pixels, enough))


def decode_fitted(path: str, side: int, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "side side 3"]:
    """The same, resized to a square.

    The resize is Pillow's bilinear one, which averages over all pixels when it shrinks (antialiasing); a large JPEG is
    first reduced by its decoder, to twice the side or more. The aspect ratio is not kept.

    Args:
        path: the file.
        side: height and width of the result in pixels, >= 1.
        max_pixels: largest width × height of the picture in the file.

    Raises:
        BadImage: the file gives no picture.
    """
    image = _read(path, max_pixels, 2 * side)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _read(path: str, max_pixels: int, enough: int | None) -> Image.Image:
    with open_file(path) as file:
        try:
            return _decoded(file, max_pixels, enough)
        except BadImage:
            raise
        except UnidentifiedImageError:
            raise BadImage("no picture in a known format") from None
        except OSError as error:
            raise BadImage(_system_reason(error)) from error
        except Exception as error:  # a decoder may fail with anything on a file that was made to harm it
            words = " ".join(str(error).split())[:200]
            raise BadImage(f"damaged ({type(error).__name__}{f': {words}' if words else ''})") from error


def open_file(path: str) -> BinaryIO:
    """The file, if it is a regular one with something in it; a pipe or a device is not opened.

    Raises:
        BadImage: it is not, or the system does not let us.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
        if status.st_size == 0:
            raise BadImage("an empty file")
        return open(path, "rb")
    except FileNotFoundError:
        raise BadImage("a link to nothing" if os.path.islink(path) else "no such file") from None
    except (OSError, ValueError) as error:
        raise BadImage(_system_reason(error)) from error


def _system_reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return _SYSTEM_REASONS.get(number or 0) or " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def _decoded(file: BinaryIO, max_pixels: int, enough: int | None) -> Image.Image:
    image = _opened(file)
    if image.width * image.height > max_pixels:
        raise BadImage(f"{image.width}×{image.height} pixels, more than `max_pixels = {max_pixels}`")
    if enough is not None:
        image.draft(None, (enough, enough))
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    image = _rgb(image)
    return image if turn is None else image.transpose(turn)


def _opened(file: BinaryIO) -> Image.Image:
    """The header alone. Pillow's limit is a global of its module and ours an argument, so it is off meanwhile."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the picture is right even where its metadata are not
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB, by the table above."""
    if image.mode == "F":
        raise BadImage("floating-point pixels, which have no defined white")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
