"""Encoded image bytes -> RGB pixels, by the fastest decoder that gets that kind of file right.

JPEG goes to libjpeg-turbo, which can decode at a fraction of the size; plain PNG to OpenCV; everything else
(palettes, transparency by colour, WebP, CMYK, odd formats) to Pillow. Orientation tags are ignored, as by the
field's loaders.
"""

import io
import struct

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview
"""An image file."""

_MAX_PIXELS = 128_000_000  # a small file may claim to be huge; decoding it would take all memory
_LEAST_FACTOR = 1.5  # 6/8 and 7/8 of the size take longer than all of it, which libjpeg-turbo has vector code for
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Pillow's readers raise nearly anything on a damaged file.
_DAMAGE = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, struct.error)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class BadSample(Exception):
    """A sample that cannot be used; the message is the reason, to be counted and reported."""


def jpeg_size(data: Encoded) -> tuple[int, int] | None:
    """(height, width) of a JPEG of grey or colour without decoding it; None for other files."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # Pillow has the last word on damaged files
    return None if space in ("CMYK", "YCCK") else (height, width)


def decode_image(data: Encoded, size: tuple[int, int] | None = None) -> Pixels:
    """Decodes an image file.

    Args:
        data: the file.
        size: (height, width) that will do: a JPEG is decoded at the smallest scale that is not below it, where that
            is faster than at full size.

    Returns:
        (H, W, 3) uint8, RGB; transparent parts lie on white, 16 bits a channel become 8.

    Raises:
        BadSample: the file is damaged, too large, or no image.
    """
    stated = jpeg_size(data)
    if stated is not None:
        _check_size(*stated)
        height, width = size or (0, 0)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=height, min_width=width, min_factor=_LEAST_FACTOR
            )
            return pixels
        except ValueError:
            return _by_pillow(data)  # stops at real damage, but not at a harmless oddity
    return _by_opencv(data) if _is_plain_png(data) else _by_pillow(data)


def _check_size(height: int, width: int) -> None:
    if height * width > _MAX_PIXELS:
        raise BadSample(f"image too large: {width}x{height}")


def _is_plain_png(data: Encoded) -> bool:
    """Grey or RGB, with or without alpha, of 8 or 16 bits: what OpenCV reads right.

    It ignores a colour that stands for transparency, and guesses at palettes.
    """
    if data[:8] != _PNG_MAGIC or len(data) < 33:
        return False
    _check_size(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
    depth, colour = data[24], data[25]
    if depth not in (8, 16) or colour not in (0, 2, 4, 6):
        return False
    data = bytes(data)
    return data.find(b"tRNS", 33, data.find(b"IDAT")) < 0


def _by_opencv(data: Encoded) -> Pixels:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadSample("image is beyond OpenCV's limits") from error
    if image is None:
        raise BadSample("PNG is damaged")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if image.shape[2] == 4 and image[..., 3].min() < 255:
        return _over_white(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA), dtype=np.uint8))
    way = cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, way), dtype=np.uint8)


def _over_white(image: Pixels) -> Pixels:
    """(H, W, 4) RGBA on a white ground, (H, W, 3)."""
    alpha = image[..., 3:].astype(np.uint32)
    mixed = image[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _by_pillow(data: Encoded) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.height, image.width)
            image.load()
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                return _by_opencv(data)  # Pillow would cut off all above 255
            if image.has_transparency_data:
                return _over_white(np.asarray(image.convert("RGBA")))
            return np.asarray(image.convert("RGB"))
    except _DAMAGE as error:
        raise BadSample(f"image cannot be decoded: {type(error).__name__}") from error
    except Image.DecompressionBombError as error:
        raise BadSample("image too large") from error
