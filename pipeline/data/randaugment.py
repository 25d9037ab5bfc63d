"""RandAugment as ALBEF's and BLIP's recipes use it: a few simple changes, drawn by seed, on uint8 pixels.

Of ten operations `count` are drawn, the same one twice if it falls so, and each is done with a chance of one half.
All have one strength, `magnitude` out of 10. What an operation moves away leaves grey.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError

Pixels = NDArray[np.uint8]

_MAX_MAGNITUDE = 10
_CHANCE = 0.5
_GREY = (128, 128, 128)
_DEGREES = 30.0  # at full magnitude, as are the next two
_SHEAR = 0.3
_SHIFT = 10.0  # pixels, whatever the picture's size
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
DRAWS = 3
"""Uniform numbers that an operation needs: which one, whether, in which direction."""


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """How much of RandAugment; ALBEF's recipe has 2 and 7, BLIP's 2 and 5.

    Attributes:
        count: operations drawn for each picture.
        magnitude: their strength, 0 to 10. At 5 brightness and sharpness stay as they are.
    """

    count: int = 2
    magnitude: float = 7

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"randaugment.count={self.count} must be at least 1; leave randaugment out for none")
        if not 0 <= self.magnitude <= _MAX_MAGNITUDE:
            raise UserError(f"randaugment.magnitude={self.magnitude} must be between 0 and {_MAX_MAGNITUDE}")


def randaugment(image: Pixels, draws: NDArray[np.float64], config: RandAugmentConfig) -> Pixels:
    """The picture after the operations that the draws name.

    Args:
        image: (H, W, 3) uint8; it is left as it is.
        draws: (count, 3) uniform numbers in [0, 1): which operation, whether it is done, in which direction.
        config: their number and strength.

    Returns:
        (H, W, 3) uint8.
    """
    for which, whether, direction in draws.tolist():
        if whether >= _CHANCE:
            continue
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        image = operation(image, config.magnitude / _MAX_MAGNITUDE, -1.0 if direction < 0.5 else 1.0)
    return image


def autocontrast(image: Pixels) -> Pixels:
    """Spreads each channel over 0..255, as Pillow's ImageOps.autocontrast."""
    tables = [_stretch(int(channel.min()), int(channel.max())) for channel in cv2.split(image)]
    return _look_up(image, tables)


def _stretch(low: int, high: int) -> NDArray[np.uint8]:
    values = np.arange(256, dtype=np.float64)
    if high > low:
        # Pillow's order of operations: another one would round differently.
        scale = 255.0 / (high - low)
        values = values * scale + -low * scale
    return np.clip(values, 0, 255).astype(np.uint8)


def equalize(image: Pixels) -> Pixels:
    """Makes the histogram of each channel flat, as Pillow's ImageOps.equalize."""
    return _look_up(image, [_flatten(channel) for channel in cv2.split(image)])


def _flatten(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    histogram = np.bincount(channel.ravel(), minlength=256)
    present = histogram[histogram > 0]
    step = int(present.sum() - present[-1]) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.clip((step // 2 + below) // step, 0, 255).astype(np.uint8)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Mixes with black: 0 is black, 1 the picture; as Pillow's ImageEnhance.Brightness."""
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor), 0, 255).astype(np.uint8)
    return _look_up(image, [table] * 3)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Mixes with a smoothed picture: 0 is smooth, 1 the picture; as Pillow's ImageEnhance.Sharpness.

    The outermost pixels stay as they are.
    """
    if factor == 1 or min(image.shape[:2]) < 3:
        return image
    smooth = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1].astype(np.float32)
    inner = image[1:-1, 1:-1].astype(np.float32)
    result = image.copy()
    result[1:-1, 1:-1] = np.clip(smooth + np.float32(factor) * (inner - smooth), 0, 255).astype(np.uint8)
    return result


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Turned about the middle, against the clock."""
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


def shear(image: Pixels, across: float, down: float) -> Pixels:
    """Rows moved by `across` pixels for each row, columns by `down` for each column."""
    return _warp(image, [[1, across, 0], [down, 1, 0]])


def translate(image: Pixels, left: float, up: float) -> Pixels:
    """Moved by so many pixels."""
    return _warp(image, [[1, 0, -left], [0, 1, -up]])


def _look_up(image: Pixels, tables: Sequence[NDArray[np.uint8]]) -> Pixels:
    return np.asarray(cv2.LUT(image, np.stack(tables, axis=-1)[None]), dtype=np.uint8)


def _warp(image: Pixels, matrix: Sequence[Sequence[float]] | NDArray[np.float64]) -> Pixels:
    height, width = image.shape[:2]
    forward = np.asarray(matrix, dtype=np.float64)
    result = cv2.warpAffine(image, forward, (width, height), flags=cv2.INTER_LINEAR, borderValue=_GREY)
    return np.asarray(result, dtype=np.uint8)


def _enhanced(share: float) -> float:
    """The factor of brightness and sharpness: 0.1 at no magnitude, 1.9 at full."""
    return share * 1.8 + 0.1


Operation = Callable[[Pixels, float, float], Pixels]

OPERATIONS: tuple[Operation, ...] = (
    lambda image, share, sign: image,
    lambda image, share, sign: autocontrast(image),
    lambda image, share, sign: equalize(image),
    lambda image, share, sign: brightness(image, _enhanced(share)),
    lambda image, share, sign: sharpness(image, _enhanced(share)),
    lambda image, share, sign: shear(image, sign * share * _SHEAR, 0.0),
    lambda image, share, sign: shear(image, 0.0, sign * share * _SHEAR),
    lambda image, share, sign: translate(image, sign * share * _SHIFT, 0.0),
    lambda image, share, sign: translate(image, 0.0, sign * share * _SHIFT),
    lambda image, share, sign: rotate(image, sign * share * _DEGREES),
)
"""By number: (picture, share of full magnitude, 1 or -1 for the direction) -> picture."""
