"""Says whether some bytes are a whole picture, and how large it is; makes pictures smaller where that is asked."""

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass

import simplejpeg
from PIL import Image, UnidentifiedImageError

from data_prep.reasons import LeftOut

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
MAX_PIXELS = 100_000_000
# Above it Pillow refuses by itself.
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
_JPEG_EXIF_BYTES = 65_533  # what one segment holds; a file may have it in several
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# libjpeg's words for lost data; Pillow hides them. Others, such as bytes too many before a marker, lose nothing.
_LOST = ("premature end of data segment", "bad Huffman code")


class BadImage(Exception):
    """Bytes that are no picture we can use; the message is the reason."""

    def __init__(self, reason: LeftOut) -> None:
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a picture's bytes hold: file extension by content, size in pixels, checksum of the bytes."""

    extension: str
    width: int
    height: int
    sha256: str


def inspect_image(data: bytes, *, decode: bool = True, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Describes a picture, and decodes it in full unless told not to.

    Raises:
        BadImage: for bytes of another format, a broken or truncated file, or more than `max_pixels` pixels.
    """
    extension, width, height = measure_image(data, max_pixels)
    if decode:
        decode_in_full(data, extension)
    return ImageInfo(extension=extension, width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def measure_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """Reads a picture's header alone: file extension, width and height in pixels.

    Raises:
        BadImage: for bytes of another format, a broken header, or more than `max_pixels` pixels.
    """
    extension, width, height = _fast_header(data) or _pillow_header(data)
    if width * height > max_pixels:
        raise BadImage(LeftOut.TOO_LARGE)
    if width < 1 or height < 1:
        raise BadImage(LeftOut.BROKEN)
    return extension, width, height


def _fast_header(data: bytes) -> tuple[str, int, int] | None:
    """The header where it is a plain one, in a twentieth of Pillow's time; None leaves the verdict to Pillow."""
    if data.startswith(_PNG_BEGIN) and len(data) > 24:
        width, height = struct.unpack_from(">II", data, 16)
        return "png", width, height
    if data.startswith(b"\xff\xd8\xff"):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        return "jpg", width, height
    return None


def _pillow_header(data: bytes) -> tuple[str, int, int]:
    with _opened(data) as image:
        return _EXTENSIONS[str(image.format)], image.width, image.height


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError as error:
        raise BadImage(LeftOut.NOT_A_PICTURE) from error
    except Image.DecompressionBombError as error:
        raise BadImage(LeftOut.TOO_LARGE) from error
    except _BROKEN as error:
        raise BadImage(LeftOut.BROKEN) from error


def decode_in_full(data: bytes, extension: str) -> None:
    """Decodes every coded bit of a picture.

    Pillow has the last word on what is broken, except that lost data which it fills with grey is broken too;
    OpenCV would even take a truncated JPEG.

    Raises:
        BadImage: for a broken or truncated file.
    """
    if extension == "jpg" and _decodes_quietly(data):
        return
    with _opened(data) as image:
        try:
            image.load()
        except Image.DecompressionBombError as error:
            raise BadImage(LeftOut.TOO_LARGE) from error
        except _BROKEN as error:
            raise BadImage(LeftOut.BROKEN) from error


def _decodes_quietly(data: bytes) -> bool:
    """Whether libjpeg has nothing to say against a JPEG.

    At an eighth of the size, which decodes all coefficients of all blocks, and so all that can be broken, and leaves
    out the arithmetic on them that cannot fail.

    Raises:
        BadImage: where data is lost.
    """
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        if any(lost in str(error) for lost in _LOST):
            raise BadImage(LeftOut.BROKEN) from error
        return False
    return True


def shrink_image(data: bytes, max_side: int, quality: int) -> bytes:
    """Makes a picture smaller, so that its longer side is `max_side` pixels; the format stays, as do EXIF and ICC.

    EXIF that is too long for a JPEG is left out.

    Args:
        data: A picture that is larger.
        max_side: Wanted, in pixels.
        quality: Of JPEG and WebP, 1 to 100.

    Raises:
        BadImage: for a broken or truncated file.
    """
    with _opened(data) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        kept = {name: image.info[name] for name in ("exif", "icc_profile") if image.info.get(name)}
        if kind == "JPEG" and len(kept.get("exif", b"")) > _JPEG_EXIF_BYTES:
            del kept["exif"]
        try:
            if image.mode in ("P", "1"):  # Pillow would pick pixels and not mean them
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        except _BROKEN as error:
            raise BadImage(LeftOut.BROKEN) from error
        file = io.BytesIO()
        image.save(file, kind, **({} if kind == "PNG" else {"quality": quality}), **kept)
        return file.getvalue()
