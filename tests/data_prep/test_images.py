import io
import struct
import zlib

import pytest
from PIL import Image

from data_prep.images import MAX_PIXELS, BadImage, inspect_image, shrink_image
from tests.data_prep.samples import picture


@pytest.mark.parametrize(("suffix", "extension"), [(".png", "png"), (".jpg", "jpg"), (".webp", "webp")])
def test_the_extension_follows_from_the_bytes(suffix, extension):
    info = inspect_image(picture(1, 12, suffix))
    assert (info.extension, info.width, info.height) == (extension, 12, 12)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_bad(suffix, share):
    data = picture(1, 64, suffix)
    with pytest.raises(BadImage, match=r"broken picture|not a JPEG"):
        inspect_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(40), b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_bad(data):
    with pytest.raises(BadImage):
        inspect_image(data)


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded():
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body = b"IDAT" + zlib.compress(b"")
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert MAX_PIXELS < 20_000**2
    with pytest.raises(BadImage, match="too large"):
        inspect_image(data)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_every_kind_of_png_is_good(mode):
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "PNG")
    info = inspect_image(file.getvalue())
    assert (info.width, info.height) == (5, 4)


def test_exif_that_fits_into_no_jpeg_does_not_keep_a_picture_from_being_made_smaller():
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG", exif=b"Exif\0\0" + bytes(60_000))
    data = file.getvalue()
    begin = data.index(b"\xff\xe1")
    segment = data[begin : begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")]
    data = data[:begin] + segment + data[begin:]  # readers join the two
    with Image.open(io.BytesIO(shrink_image(data, 32, 95))) as image:
        assert image.size == (32, 24)
