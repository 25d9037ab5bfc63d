"""Encoded image -> pixels of the size that the model sees, in training augmented by seed."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from data_prep.errors import UserError
from pipeline.data.decode import BadSample, Encoded, Pixels, decode_image, jpeg_size
from pipeline.data.pixels import CLIP_MEAN, CLIP_STD
from pipeline.data.pixels import normalise as normalise  # the last step of the way, known by this name too
from pipeline.data.randaugment import DRAWS, RandAugmentConfig, randaugment

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_ASPECT = (3 / 4, 4 / 3)
_SPARE = 2  # a JPEG that is decoded at twice the size still gives what Pillow makes of the full one


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Size and augmentation of images.

    Attributes:
        height: pixels of the model's input.
        width: pixels of the model's input.
        crop_scale: range of the share of the area that a random crop keeps in training, such as (0.5, 1);
            None for none.
        flip: mirror every second image in training, except where its text, or an answer to it, says left or right.
        permute_boxes: in training, deal the three boxes of an NLVR picture anew; its statements are true of
            any order.
        randaugment: operations on the cropped and mirrored picture in training, such as {count: 2, magnitude: 7};
            None for none.
        resize: "area" takes the mean of the pixels that fall together (and lies linearly between them where a
            picture grows); "bicubic" is what torchvision does with Pillow pictures, sharper and slower.
        crop: "none" brings the whole picture to the model's size, whatever its shape; "center" keeps its shape: the
            shorter side gets the model's size and the middle is cut out, as CLIP's and METER's recipes do. In training
            too, where no `crop_scale` crops at random.
        mean: of each channel, subtracted after scaling to 0..1.
        std: of each channel, divided by.
    """

    height: int = 64
    width: int = 64
    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    permute_boxes: bool = False
    randaugment: RandAugmentConfig | None = None
    resize: Literal["area", "bicubic"] = "area"
    crop: Literal["none", "center"] = "none"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UserError(f"height={self.height} and width={self.width} must be at least 1")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(f"crop_scale={self.crop_scale} must be two shares in order, such as (0.5, 1.0), or absent")
        if self.resize not in ("area", "bicubic"):
            raise UserError(f"resize={self.resize!r} must be area or bicubic")
        if self.crop not in ("none", "center"):
            raise UserError(f"crop={self.crop!r} must be none or center")
        if self.crop == "center" and self.permute_boxes:
            raise UserError("crop=center would cut off boxes that permute_boxes deals; set one of them otherwise")
        if min(self.std) <= 0:
            raise UserError(f"std={self.std} must be above 0 in each channel")

    @property
    def augments(self) -> bool:
        """Whether anything is left to chance in training."""
        return self.crop_scale is not None or self.flip or self.permute_boxes or self.randaugment is not None

    @property
    def decode_scale(self) -> int:
        """How many times as large as the result a picture must be decoded to lose nothing that would show."""
        return _SPARE if self.resize == "bicubic" else 1


def eval_image(data: Encoded, config: TransformConfig) -> Pixels:
    """The whole image, or its middle (`TransformConfig.crop`), at the model's size, (height, width, 3) uint8.

    Raises:
        BadSample: the image cannot be decoded.
    """
    spare = config.decode_scale
    image = decode_image(data, (spare * config.height, spare * config.width))
    if config.crop == "none":
        return _resize(image, config)
    height, width = _around((jpeg_size(data) or image.shape)[:2], config)
    image = _resize(image, config, (height, width))
    top, left = round((height - config.height) / 2), round((width - config.width) / 2)
    return np.ascontiguousarray(_cut(image, (top, left, config.height, config.width)))


def _around(full: tuple[int, ...], config: TransformConfig) -> tuple[int, int]:
    """(height, width) in a picture's own shape that just covers the model's, rounded as torchvision's Resize does."""
    height, width = full
    if config.height * width >= config.width * height:
        return config.height, max(config.width, int(config.height * width / height))
    return max(config.height, int(config.width * height / width)), config.width


def train_image(data: Encoded, text: str, config: TransformConfig, rng: np.random.Generator) -> Pixels:
    """The image cropped, mirrored, its boxes dealt, and changed as `rng` decides, (height, width, 3) uint8.

    Args:
        data: the image file.
        text: all that is said of the image (`sample.all_said`); it decides whether mirroring is allowed.
        config: what to do.
        rng: a generator that belongs to this visit of the sample.

    Raises:
        BadSample: the image cannot be decoded.
    """
    # All are drawn whatever the settings, so that switching one augmentation does not change the others.
    area, aspect, top, left, mirror = rng.random(5)
    draws = area, aspect, top, left
    boxes = rng.permutation(3).tolist() if config.permute_boxes or config.randaugment else []
    if config.permute_boxes:
        image = permute_boxes(decode_image(data), boxes)
        image = _resize(_cut(image, _crop(image.shape[:2], draws, config)), config)
    elif config.crop_scale is None:
        image = eval_image(data, config)
    else:
        image = _resize(_decode_crop(data, draws, config), config)
    if config.flip and mirror < 0.5 and not _SIDES.search(text):
        image = np.asarray(cv2.flip(image, 1), dtype=np.uint8)
    if config.randaugment is not None:
        image = randaugment(image, rng.random((config.randaugment.count, DRAWS)), config.randaugment)
    return image


def _decode_crop(data: Encoded, draws: tuple[float, float, float, float], config: TransformConfig) -> Pixels:
    """The crop of an image, of a JPEG decoded at no larger scale than the crop needs."""
    full = jpeg_size(data)
    if full is None:
        image = decode_image(data)
        return _cut(image, _crop(image.shape[:2], draws, config))
    box = _crop(full, draws, config)
    height, width = config.decode_scale * config.height, config.decode_scale * config.width
    least = math.ceil(height * full[0] / box[2]), math.ceil(width * full[1] / box[3])
    image = decode_image(data, least)
    down, across = image.shape[0] / full[0], image.shape[1] / full[1]
    return _cut(image, (round(box[0] * down), round(box[1] * across), round(box[2] * down), round(box[3] * across)))


def _crop(
    full: tuple[int, ...], draws: tuple[float, float, float, float], config: TransformConfig
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random crop; for a square target as torchvision's RandomResizedCrop.

    The share of the area is uniform and the aspect log-uniform within 3/4 to 4/3 of the target's own. A crop
    that sticks out is cut to the image instead of drawn again, so that the number of draws is fixed.
    """
    height, width = full[0], full[1]
    if config.crop_scale is None:
        return 0, 0, height, width
    low, high = config.crop_scale
    area = (low + (high - low) * draws[0]) * height * width
    aspect = (
        math.exp(math.log(_ASPECT[0]) + math.log(_ASPECT[1] / _ASPECT[0]) * draws[1]) * config.width / config.height
    )
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    top = int(draws[2] * (height - crop_height + 1))
    left = int(draws[3] * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def _cut(image: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    top, left, height, width = box
    return image[top : top + max(height, 1), left : left + max(width, 1)]


def _resize(image: Pixels, config: TransformConfig, size: tuple[int, int] | None = None) -> Pixels:
    """At (height, width), or the model's own."""
    height, width = image.shape[:2]
    down, across = size or (config.height, config.width)
    if (height, width) == (down, across):
        return image
    if config.resize == "bicubic":
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((across, down), Image.Resampling.BICUBIC))
    way = cv2.INTER_AREA if height >= down and width >= across else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (across, down), interpolation=way), dtype=np.uint8)


def permute_boxes(image: Pixels, order: list[int]) -> Pixels:
    """An NLVR picture with its boxes in another order: box i of the result is box order[i] of the image.

    The pictures are 400 x 100: three boxes of 100 pixels, grey bars of 50 between them, which stay where they
    are.

    Raises:
        BadSample: the picture is not of this shape.
    """
    height, width = image.shape[:2]
    if width != 4 * height or height % 2:
        raise BadSample(f"no picture of three boxes, as permute_boxes wants, such as 400x100: {width}x{height}")
    starts = [0, height * 3 // 2, height * 3]
    result = image.copy()
    for to, source in enumerate(order):
        result[:, starts[to] : starts[to] + height] = image[:, starts[source] : starts[source] + height]
    return result
