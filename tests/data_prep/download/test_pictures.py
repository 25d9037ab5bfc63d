import io

import pytest
from PIL import Image

from data_prep.download.pictures import has_side, shrink
from data_prep.images import BadImage
from tests.data_prep.download.server import encoded


def test_the_smaller_side_counts():
    data = encoded(1, side=48)  # 48 by 64
    assert has_side(data, 48)
    assert not has_side(data, 49)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_large_picture_keeps_its_aspect_and_a_small_one_its_bytes(kind):
    data = encoded(1, side=400, kind=kind)  # 400 by 416
    assert shrink(data, 416) is data
    with Image.open(io.BytesIO(shrink(data, 104))) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (100, 104), "RGB")


def test_which_side_is_up_is_kept_and_what_is_clear_becomes_white():
    image, out = Image.new("RGB", (80, 40)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(out, "JPEG", exif=exif)
    with Image.open(io.BytesIO(shrink(out.getvalue(), 40))) as small:
        assert small.getexif()[0x0112] == 6
    clear, out = Image.new("RGBA", (80, 40), (255, 0, 0, 0)), io.BytesIO()
    clear.save(out, "PNG")
    with Image.open(io.BytesIO(shrink(out.getvalue(), 40))) as small:
        assert min(small.getpixel((10, 10))) > 250


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP picture"),
        (b"<html></html>", "not a JPEG, PNG or WebP picture"),
        (encoded(1, kind="GIF"), "not a JPEG, PNG or WebP picture"),
        (encoded(1, side=200)[:-600], "broken picture"),
    ],
)
def test_what_is_no_picture_is_never_made_into_one(data, reason):
    with pytest.raises(BadImage, match=reason):
        shrink(data, 50)
