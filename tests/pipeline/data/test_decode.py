import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import BadSample, decode_image, jpeg_size

SMOOTH = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8),
    (60, 48),
    interpolation=cv2.INTER_CUBIC,
)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def far(pixels: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(pixels.astype(float) - expected.astype(float)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_out_exact(kind: str) -> None:
    assert (decode_image(encoded(Image.fromarray(SMOOTH), kind)) == SMOOTH).all()


def test_lossless_webp_comes_out_exact() -> None:
    assert (decode_image(encoded(Image.fromarray(SMOOTH), "WEBP", lossless=True)) == SMOOTH).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_comes_out_in_rgb(options) -> None:
    assert far(decode_image(encoded(Image.fromarray(SMOOTH), "JPEG", quality=95, **options)), SMOOTH) < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    pixels = decode_image(encoded(Image.fromarray(SMOOTH).convert("L"), kind))
    assert pixels.shape == (48, 60, 3)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_jpeg_has_its_colours() -> None:
    image = Image.fromarray(SMOOTH).convert("CMYK")
    assert far(decode_image(encoded(image, "JPEG", quality=98)), np.asarray(image.convert("RGB"))) < 4


def test_palette_keeps_its_colours() -> None:
    image = Image.fromarray(SMOOTH).quantize(17)
    assert (decode_image(encoded(image, "PNG")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["1", "L"])
def test_few_bits_a_pixel_are_spread_over_the_range(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert(mode)
    assert decode_image(encoded(image, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_sixteen_bits_are_scaled_not_cut() -> None:
    grey = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert decode_image(encoded(Image.fromarray(grey), "PNG"))[0, :, 0].tolist() == [0, 100, 255]
    colour = np.dstack([grey, grey[:, ::-1], grey])
    data = cv2.imencode(".png", colour[..., ::-1])[1].tobytes()
    assert decode_image(data)[0].tolist() == [[0, 255, 0], [100, 100, 100], [255, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_on_white(kind: str) -> None:
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 100, 0, 51]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = decode_image(encoded(Image.fromarray(pixels), kind, **options))
    assert got.tolist() == [[[255, 255, 255], [200, 0, 0], [244, 224, 204]]]


def test_a_transparent_colour_or_palette_entry_lies_on_white() -> None:
    rgb = encoded(Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8)), "PNG", transparency=(9, 9, 9))
    assert decode_image(rgb).tolist() == [[[255, 255, 255], [1, 2, 3]]]
    palette = Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8)).quantize(2)
    hidden = int(np.asarray(palette)[0, 0])
    got = decode_image(encoded(palette, "PNG", transparency=hidden))
    assert got[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_grey_with_alpha_lies_on_white(kind: str) -> None:
    pixels = np.array([[[200, 0], [200, 255], [200, 51]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = decode_image(encoded(Image.fromarray(pixels, "LA"), kind, **options))
    assert got.tolist() == [[[255] * 3, [200] * 3, [244] * 3]]


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_a_channel_become_eight_with_alpha_and_without(channels: int) -> None:
    deep = np.array([[[0, 257 * 100, 65535, 65535], [257 * 200, 0, 0, 0]]], dtype=np.uint16)[..., :channels]
    order = [2, 1, 0, 3][:channels]
    wanted = [[[0, 100, 255], [200, 0, 0] if channels == 3 else [255, 255, 255]]]
    assert decode_image(cv2.imencode(".png", deep[..., order])[1].tobytes()).tolist() == wanted
    assert decode_image(cv2.imencode(".tiff", deep[..., order])[1].tobytes())[0, 0].tolist() == [0, 100, 255]


def test_sixteen_bit_grey_of_other_formats_is_scaled() -> None:
    grey = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for kind in ("TIFF", "PPM"):
        assert decode_image(encoded(Image.fromarray(grey), kind))[0, :, 0].tolist() == [0, 100, 255]


def test_a_palette_with_an_alpha_for_each_entry_lies_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([200, 0, 0, 200, 0, 0, 200, 100, 0])
    got = decode_image(encoded(palette, "PNG", transparency=bytes([0, 255, 51])))
    assert got.tolist() == [[[255, 255, 255], [200, 0, 0], [244, 224, 204]]]


def test_lossy_webp_and_gif_have_their_colours() -> None:
    assert far(decode_image(encoded(Image.fromarray(SMOOTH), "WEBP", quality=95)), SMOOTH) < 5
    gif = Image.fromarray(SMOOTH).quantize(64)
    assert (decode_image(encoded(gif, "GIF")) == np.asarray(gif.convert("RGB"))).all()


def test_adobes_inverted_cmyk_has_its_colours() -> None:
    """Photoshop's CMYK JPEGs, and YCCK ones, store ink inverted and say so in an Adobe marker."""
    image = Image.fromarray(SMOOTH).convert("CMYK")
    data = encoded(image, "JPEG", quality=98)
    assert b"Adobe" in data  # Pillow writes them as Photoshop does
    white = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    black = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG")
    assert decode_image(white).min() > 250 and decode_image(black).max() < 5


def test_opaque_rgba_is_rgb() -> None:
    data = encoded(Image.fromarray(SMOOTH).convert("RGBA"), "PNG")
    assert (decode_image(data) == SMOOTH).all()


def test_a_large_jpeg_is_decoded_at_the_smallest_scale_that_will_do() -> None:
    large = cv2.resize(SMOOTH, (640, 480), interpolation=cv2.INTER_CUBIC)
    data = encoded(Image.fromarray(large), "JPEG", quality=95)
    assert jpeg_size(data) == (480, 640)
    pixels = decode_image(data, (100, 100))
    assert pixels.shape == (120, 160, 3)
    assert far(pixels, cv2.resize(large, (160, 120), interpolation=cv2.INTER_AREA)) < 4


def test_a_png_that_claims_to_be_huge_is_not_decoded() -> None:
    data = bytearray(encoded(Image.fromarray(SMOOTH), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(BadSample, match="too large"):
        decode_image(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_bad_samples(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(SMOOTH), kind)
    with pytest.raises(BadSample):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore:.*EXIF data")
@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\0"]))
def test_noise_is_a_bad_sample_and_nothing_else(noise: bytes, magic: bytes) -> None:
    with pytest.raises(BadSample):
        decode_image(magic + noise)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_never_escapes_as_another_error(kind: str, place: int, change: int) -> None:
    data = bytearray(encoded(Image.fromarray(SMOOTH), kind))
    data[place % len(data)] ^= change
    try:
        assert decode_image(bytes(data)).dtype == np.uint8
    except BadSample as error:
        assert str(error)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_beyond_opencvs_limits_is_a_bad_sample(kind: str) -> None:
    wide = Image.fromarray(np.zeros((1, (1 << 20) + 1), np.uint16))
    with pytest.raises(BadSample):
        decode_image(encoded(wide, kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_tag_of_orientation_is_ignored_as_by_the_recipes(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(SMOOTH)
    data = encoded(image, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as tagged:
        assert tagged.getexif()[0x0112] == 6
        assert far(decode_image(data), np.asarray(tagged.convert("RGB"))) < 1
    assert decode_image(data).shape == SMOOTH.shape


@pytest.mark.parametrize(("eighths", "gives"), [(4, 4), (5, 5), (6, 8), (7, 8), (8, 8)])
def test_scales_that_take_longer_than_full_size_are_not_used(eighths: int, gives: int) -> None:
    data = encoded(Image.fromarray(cv2.resize(SMOOTH, (640, 480))), "JPEG")
    assert decode_image(data, (60 * eighths, 80 * eighths)).shape == (60 * gives, 80 * gives, 3)
