"""Every operation against Pillow's, or against the formula worked out pixel by pixel."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from data_prep.errors import UserError
from pipeline.data.randaugment import (
    DRAWS,
    OPERATIONS,
    RandAugmentConfig,
    autocontrast,
    brightness,
    equalize,
    randaugment,
    rotate,
    sharpness,
    shear,
    translate,
)

GREY = 128
FULL = 10.0
NAMES = ["Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"]
NAMES += ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    smooth = cv2.resize(rng.integers(60, 190, (4, 5, 3), dtype=np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
    flat = np.full((20, 30, 3), (0, 77, 255), dtype=np.uint8)
    two = np.where(rng.random((20, 30, 1)) < 0.5, 10, 200).astype(np.uint8).repeat(3, axis=2)
    return [noise, smooth, flat, two]


PICTURES = pictures()


@pytest.mark.parametrize("image", PICTURES)
def test_contrast_is_pillows(image: np.ndarray) -> None:
    assert (autocontrast(image) == np.asarray(ImageOps.autocontrast(Image.fromarray(image)))).all()
    assert (equalize(image) == np.asarray(ImageOps.equalize(Image.fromarray(image)))).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 256))
def test_contrast_is_pillows_for_any_picture(seed: int, height: int, width: int, values: int) -> None:
    image = np.random.default_rng(seed).integers(0, values, (height, width, 3), dtype=np.uint8)
    assert (autocontrast(image) == np.asarray(ImageOps.autocontrast(Image.fromarray(image)))).all()
    assert (equalize(image) == np.asarray(ImageOps.equalize(Image.fromarray(image)))).all()


@pytest.mark.parametrize("image", PICTURES)
@pytest.mark.parametrize("factor", [0.1, 0.64, 1.0, 1.36, 1.9])
def test_enhancement_is_pillows(image: np.ndarray, factor: float) -> None:
    assert (
        brightness(image, factor) == np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))
    ).all()
    wanted = np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))
    # Both round the smoothed picture; where its thirteenths fall near a half they may part by one, and `factor` of it.
    assert np.abs(sharpness(image, factor).astype(int) - wanted).max() <= 2
    assert (sharpness(image, factor) != wanted).mean() < 0.02


def moved(image: np.ndarray, row: int, column: int, down: float, across: float) -> np.ndarray:
    """The colour that stands at a place, taken between its four neighbours; grey outside of the picture."""
    y, x = row + down, column + across
    top, left = math.floor(y), math.floor(x)
    total = np.zeros(3)
    for near_y, near_x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        inside = 0 <= near_y < image.shape[0] and 0 <= near_x < image.shape[1]
        colour = image[near_y, near_x] if inside else np.full(3, GREY)
        total += colour * (1 - abs(y - near_y)) * (1 - abs(x - near_x))
    return total


def warped(image: np.ndarray, inverse) -> np.ndarray:
    result = np.zeros(image.shape)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            y, x = inverse(row, column)
            result[row, column] = moved(image, row, column, y - row, x - column)
    return result


def near(pixels: np.ndarray, wanted: np.ndarray) -> bool:
    """OpenCV places pixels to 1/32."""
    return bool(np.abs(pixels - wanted).max() <= 255 / 32 * 2 and np.abs(pixels - wanted).mean() < 1.5)


@pytest.mark.parametrize("share", [0.21, -0.15])
def test_shearing_moves_rows_and_columns(share: float) -> None:
    image = PICTURES[1]
    assert near(shear(image, share, 0.0), warped(image, lambda y, x: (y, x - share * y)))
    assert near(shear(image, 0.0, share), warped(image, lambda y, x: (y - share * x, x)))


def test_shifting_by_whole_pixels_is_exact_and_leaves_grey() -> None:
    image = PICTURES[0]
    left = translate(image, 7.0, 0.0)
    assert (left[:, :-7] == image[:, 7:]).all() and (left[:, -7:] == GREY).all()
    down = translate(image, 0.0, -5.0)
    assert (down[5:] == image[:-5]).all() and (down[:5] == GREY).all()
    assert near(translate(PICTURES[1], 2.5, 0.0), warped(PICTURES[1], lambda y, x: (y, x + 2.5)))


@pytest.mark.parametrize("degrees", [21.0, -15.0])
def test_turning_is_about_the_middle_and_against_the_clock(degrees: float) -> None:
    image = PICTURES[1]
    height, width = image.shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))

    def inverse(y: int, x: int) -> tuple[float, float]:
        up, right = y - height / 2, x - width / 2
        return height / 2 + sine * right + cosine * up, width / 2 + cosine * right - sine * up

    assert near(rotate(image, degrees), warped(image, inverse))
    marked = np.zeros((41, 41, 3), np.uint8)
    marked[20, 35] = 255  # right of the middle: it moves up
    assert rotate(marked, 30.0)[:20].max() > 0 and rotate(marked, 30.0)[21:, :, 0].max() in (0, GREY)


@pytest.mark.parametrize(
    ("name", "sign", "wanted"),
    [
        ("Identity", 1, lambda image: image),
        ("AutoContrast", 1, autocontrast),
        ("Equalize", 1, equalize),
        ("Brightness", 1, lambda image: brightness(image, 1.36)),
        ("Sharpness", -1, lambda image: sharpness(image, 1.36)),
        ("ShearX", 1, lambda image: shear(image, 0.21, 0.0)),
        ("ShearY", -1, lambda image: shear(image, 0.0, -0.21)),
        ("TranslateX", 1, lambda image: translate(image, 7.0, 0.0)),
        ("TranslateY", -1, lambda image: translate(image, 0.0, -7.0)),
        ("Rotate", -1, lambda image: rotate(image, -21.0)),
    ],
)
def test_a_magnitude_of_seven_is_albefs(name: str, sign: int, wanted) -> None:
    # Its constants by hand: enhancement 0.7 * 1.8 + 0.1, shear 0.7 * 0.3, shift 0.7 * 10 pixels, 0.7 * 30 degrees.
    got = OPERATIONS[NAMES.index(name)](PICTURES[0], 0.7, float(sign))
    assert (got == wanted(PICTURES[0])).all()


def test_the_draws_say_which_operation_whether_and_which_way() -> None:
    config = RandAugmentConfig(count=1, magnitude=FULL)
    image = PICTURES[0]

    def once(which: float, whether: float, direction: float) -> np.ndarray:
        return randaugment(image, np.array([[which, whether, direction]]), config)

    for number, operation in enumerate(OPERATIONS):
        assert (once((number + 0.5) / 10, 0.49, 0.7) == operation(image, 1.0, 1.0)).all()
        assert (once((number + 0.5) / 10, 0.49, 0.3) == operation(image, 1.0, -1.0)).all()
        assert (once((number + 0.5) / 10, 0.5, 0.3) == image).all()
    assert (once(0.999999999, 0.0, 0.9) == rotate(image, 30.0)).all()


def test_operations_follow_each_other_and_the_picture_given_stays() -> None:
    image, before = PICTURES[0], PICTURES[0].copy()
    draws = np.array([[0.35, 0.1, 0.0], [0.75, 0.1, 0.9]])
    got = randaugment(image, draws, RandAugmentConfig(magnitude=7))
    assert (got == translate(brightness(image, 1.36), 7.0, 0.0)).all()
    assert (image == before).all() and draws.shape == (2, DRAWS)


def test_blips_magnitude_leaves_brightness_and_sharpness() -> None:
    for name in ("Brightness", "Sharpness"):
        assert (OPERATIONS[NAMES.index(name)](PICTURES[0], 0.5, 1.0) == PICTURES[0]).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.floats(0, 10))
def test_any_picture_keeps_its_shape(height: int, width: int, seed: int, magnitude: float) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for operation in OPERATIONS:
        got = operation(image, magnitude / 10, 1.0)
        assert got.shape == image.shape and got.dtype == np.uint8


@pytest.mark.parametrize("bad", [{"count": 0}, {"magnitude": -1}, {"magnitude": 11}])
def test_senseless_settings_are_refused(bad) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        RandAugmentConfig(**bad)
