"""Measures a picture by its header, and makes one smaller that is too large."""

import io
from struct import error as StructError

from PIL import Image, UnidentifiedImageError

from data_prep.images import BadImage, inspect_image

JPEG_QUALITY = 95
_EXIF_BYTES = 65_000  # a JPEG segment holds no more
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, StructError)


def has_side(data: bytes, side: int) -> bool:
    """Whether a picture's width and height are at least `side` pixels, from its header alone.

    Raises:
        BadImage: for bytes that do not begin as a JPEG, PNG or WebP picture.
    """
    width, height = _size(data)
    return min(width, height) >= side


def shrink(data: bytes, side: int) -> bytes:
    """Re-encodes a picture whose longer side has more than `side` pixels as a JPEG that keeps its aspect.

    Returns:
        The new bytes, or the same ones where it is small enough.

    Raises:
        BadImage: for bytes that are no whole picture.
    """
    if max(_size(data)) <= side:
        return data
    inspect_image(data)  # in full first: reading at a smaller scale may not notice what is missing
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            exif = image.info.get("exif", b"")  # it may say which side is up
            image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            small = _on_white(image)
            small.save(out, "JPEG", quality=JPEG_QUALITY, exif=exif if len(exif) <= _EXIF_BYTES else b"")
    except _BROKEN as error:
        raise BadImage("broken picture") from error
    return out.getvalue()


def _size(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise BadImage("not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise BadImage("picture too large") from error
    except _BROKEN as error:
        raise BadImage("broken picture") from error


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, "white")
    below.alpha_composite(image.convert("RGBA"))
    return below.convert("RGB")
