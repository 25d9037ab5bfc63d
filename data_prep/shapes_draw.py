"""Draws scenes of shapes as small JPEG pictures: anti-aliased shapes on muted, textured backgrounds."""

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.shapes_world import BOARD, Dice, Scene, Shape

_RGB = {
    "red": (222, 32, 36),
    "orange": (255, 138, 0),
    "yellow": (250, 228, 40),
    "green": (30, 165, 55),
    "cyan": (50, 212, 220),
    "blue": (35, 70, 225),
    "purple": (130, 35, 170),
    "pink": (255, 130, 195),
}
_SHIFT = 4  # cv2 draws at 1/16 pixel
_TILE = 256
# 4:4:4 keeps the colour of the small shapes; decoding is three times as fast as PNG's at half the size.
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_TEXTURES = ("noise", "stripes", "gradient", "checker")

Grey = NDArray[np.float32]


def draw_picture(scene: Scene, image_size: int, dice: Dice, *, grey: bool = False) -> bytes:
    """Draws a scene.

    Args:
        scene: What to draw.
        image_size: Width and height in pixels.
        dice: Decides everything that no sentence speaks of: background, tints, small rotations.
        grey: Whether it is in black and white.

    Returns:
        The JPEG bytes.
    """
    canvas = _background(image_size, dice)
    scale = image_size / BOARD
    # Large shapes lie below, so that none is hidden.
    for shape in sorted(scene, key=lambda shape: shape.size == "small"):
        _draw_shape(canvas, shape, scale, dice)
    if grey:
        canvas = np.asarray(cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    done, data = cv2.imencode(".jpg", canvas, _JPEG)
    if not done:
        raise RuntimeError("OpenCV cannot write JPEG pictures")
    return bytes(data)


def _draw_shape(canvas: NDArray[np.uint8], shape: Shape, scale: float, dice: Dice) -> None:
    turn = dice.number(-0.2, 0.2)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]]) * (shape.radius * scale)
    points = _outline(shape.kind) @ rotation + (np.array([shape.x, shape.y]) * scale - 0.5)
    red, green, blue = (min(255, max(0, value + dice.below(25) - 12)) for value in _RGB[shape.colour])
    fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], (blue, green, red), lineType=cv2.LINE_AA, shift=_SHIFT)


@functools.cache
def _outline(kind: str) -> NDArray[np.float64]:
    """The corners (n, 2) of a shape of radius 1 around its centre, y downwards."""
    if kind == "circle":
        return _ring(32, 1.0)
    if kind == "square":
        return _ring(4, 1.2, math.pi / 4)
    if kind == "triangle":
        return _ring(3, 1.2, -math.pi / 2)
    if kind == "star":
        points = _ring(10, 1.25, -math.pi / 2)
        points[1::2] *= 0.52 / 1.25
        return points
    if kind == "cross":
        a, b = 0.36, 1.05
        quarter = np.array([[a, -b], [a, -a], [b, -a]])
        turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
        return np.concatenate([quarter @ turn for turn in turns])
    return _heart()


def _ring(corners: int, radius: float, start: float = 0.0) -> NDArray[np.float64]:
    angles = start + np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _heart() -> NDArray[np.float64]:
    t = np.arange(32) * (2 * math.pi / 32)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -(y + 2.5)], axis=1) / 14.5


def _background(size: int, dice: Dice) -> NDArray[np.uint8]:
    """A grey texture with a faint tint, (size, size, 3); its contrast is far below that of any shape."""
    texture = dice.pick(_TEXTURES)
    base, strength = dice.number(95, 185), dice.number(10, 28)
    grey = base + strength * _pattern(texture, size, dice)
    left, top = dice.below(_TILE), dice.below(_TILE)
    grain = _noise(_TILE + size)[top : top + size, left : left + size]
    grey += grain * dice.number(3, 10)
    tint = np.array([[[dice.number(-7, 7) for _ in range(3)]]], dtype=np.float32)
    canvas: NDArray[np.uint8] = np.clip(grey[..., None] + tint, 40, 235).astype(np.uint8)
    return canvas


def _pattern(texture: str, size: int, dice: Dice) -> Grey:
    """A texture (size, size) with values from about -1 to 1."""
    if texture == "noise":
        left, top = dice.below(_TILE), dice.below(_TILE)
        return _clouds(_TILE + size)[top : top + size, left : left + size]
    angle, phase = dice.number(0, math.pi), dice.number(0, 2 * math.pi)
    x, y = _axes(size)
    along: Grey = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    if texture == "gradient":
        return along
    frequency = np.float32(dice.number(6, 26))
    waves: Grey = np.sin(along * frequency + np.float32(phase))
    if texture == "stripes":
        return waves
    across: Grey = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    squares: Grey = np.sign(waves * np.sin(across * frequency))
    return squares


@functools.cache
def _axes(size: int) -> tuple[Grey, Grey]:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return axis[None, :], axis[:, None]


@functools.cache
def _noise(side: int) -> Grey:
    """A field of noise that every picture cuts a window out of: fresh noise would cost most of the time."""
    return np.random.Generator(np.random.PCG64(1)).standard_normal((side, side), dtype=np.float32)


@functools.cache
def _clouds(side: int) -> Grey:
    field = np.asarray(cv2.GaussianBlur(_noise(side), (0, 0), 2.5), dtype=np.float32)
    return field / np.float32(2 * field.std())
