"""Says whether some bytes are a whole picture, and how large it is."""

import hashlib
import io
from dataclasses import dataclass
from struct import error as StructError

from PIL import Image, UnidentifiedImageError

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """Bytes that are no picture we can use; the message is the reason, from a small fixed set."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a picture's bytes hold: file extension by content, size in pixels, checksum of the bytes."""

    extension: str
    width: int
    height: int
    sha256: str


def inspect_image(data: bytes) -> ImageInfo:
    """Decodes a picture in full and describes it.

    Pillow and not OpenCV does this check: OpenCV fills the missing part of a truncated JPEG with grey.

    Raises:
        BadImage: for bytes of another format, a broken or truncated file, or more than `MAX_PIXELS` pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError as error:
        raise BadImage("not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise BadImage("picture too large") from error
    except (OSError, SyntaxError, ValueError, EOFError, StructError) as error:
        raise BadImage("broken picture") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise BadImage("picture too large")
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, StructError) as error:
            raise BadImage("broken picture") from error
        return ImageInfo(
            extension=_EXTENSIONS[str(image.format)],
            width=image.width,
            height=image.height,
            sha256=hashlib.sha256(data).hexdigest(),
        )
