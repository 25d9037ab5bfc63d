import io
from dataclasses import replace
from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from data_prep.errors import UserError
from pipeline.data.decode import BadSample
from pipeline.data.randaugment import RandAugmentConfig, randaugment
from pipeline.data.seeds import generator
from pipeline.data.transforms import TransformConfig, eval_image, normalise, permute_boxes, train_image

BEFORE = [[100, 136, 173, 209], [124, 93, 61, 30]]
ORDERS = [(2, 1, 0), (0, 2, 1), (1, 2, 0), (0, 2, 1)]


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def slope(height: int, width: int) -> np.ndarray:
    """Red rises to the right, green downwards: what is cut out can be read off."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.dstack([across, down, np.zeros_like(down)]).astype(np.uint8)


def boxes() -> np.ndarray:
    picture = np.full((100, 400, 3), 128, dtype=np.uint8)
    for number, start in enumerate((0, 150, 300)):
        picture[:, start : start + 100] = np.random.default_rng(number).integers(0, 256, (100, 100, 3))
    return picture


def test_evaluation_sees_the_whole_image_at_the_given_height_and_width() -> None:
    pixels = eval_image(png(slope(50, 200)), TransformConfig(height=32, width=128))
    assert pixels.shape == (32, 128, 3)
    assert pixels[:, 0, 0].max() < 5 and pixels[:, -1, 0].min() > 250


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = slope(64, 64)
    assert (eval_image(png(image), TransformConfig(height=64, width=64)) == image).all()


def edged(height: int, width: int) -> np.ndarray:
    """Noise between red, green, blue and white bars along its edges."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    bar = min(height, width) // 8
    sides = (np.s_[:bar], np.s_[-bar:], np.s_[:, :bar], np.s_[:, -bar:])
    for place, colour in zip(sides, ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)), strict=True):
        picture[place] = colour
    return picture


@pytest.mark.parametrize("shape", [(90, 160), (161, 90), (100, 117), (64, 64), (20, 37), (300, 33)])
def test_the_middle_is_cut_out_as_by_clips_and_meters_own_transform(shape: tuple[int, int]) -> None:
    theirs = Compose([Resize(32, interpolation=InterpolationMode.BICUBIC), CenterCrop(32)])
    config = TransformConfig(height=32, width=32, resize="bicubic", crop="center")
    picture = edged(*shape)
    wanted = np.asarray(theirs(Image.fromarray(picture)))
    assert (eval_image(png(picture), config) == wanted).all()
    assert (train_image(png(picture), "a dog", config, generator(0)) == wanted).all()
    squeezed = eval_image(png(picture), replace(config, crop="none"))
    assert (squeezed == wanted).all() == (shape == (64, 64))


def test_a_jpeg_that_is_decoded_smaller_has_the_same_middle() -> None:
    config = TransformConfig(height=32, width=32, resize="bicubic", crop="center")
    picture = cv2.GaussianBlur(edged(403, 611), (31, 31), 8)
    found = eval_image(jpeg(picture), config).astype(int) - eval_image(png(picture), config)
    assert np.abs(found).max() <= 12 and np.abs(found).mean() < 1


def test_other_shapes_than_squares_are_covered_too() -> None:
    config = TransformConfig(height=20, width=60, crop="center")
    for shape in ((90, 160), (50, 400), (7, 9), (20, 60)):
        assert eval_image(png(edged(max(shape[0], 8), max(shape[1], 8))), config).shape == (20, 60, 3)
    for wrong in ({"crop": "left"}, {"crop": "center", "permute_boxes": True}):
        with pytest.raises(UserError, match="crop="):
            TransformConfig(**wrong)


def test_augmentation_follows_from_its_generator_alone() -> None:
    config = TransformConfig(height=24, width=24, crop_scale=(0.3, 1.0), flip=True)
    data = png(slope(60, 80))
    one, same, other = (train_image(data, "a dog", config, generator(k)) for k in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_mirroring_spares_texts_that_say_left_or_right() -> None:
    config = TransformConfig(height=8, width=8, flip=True)
    image = slope(8, 8)

    def mirrored(text: str) -> int:
        return sum((train_image(png(image), text, config, generator(k)) != image).any() for k in range(60))

    assert 15 < mirrored("a bright uprighted dog") < 45
    for text in ("the LEFT dog", "in the right-hand box", "leftmost", "stands to the right."):
        assert mirrored(text) == 0


def test_switching_one_augmentation_does_not_change_another() -> None:
    image = png(slope(60, 80))
    both = TransformConfig(height=24, width=24, crop_scale=(0.3, 0.5), flip=True)
    crop = TransformConfig(height=24, width=24, crop_scale=(0.3, 0.5))
    for k in range(20):
        plain = train_image(image, "x", crop, generator(k))
        also = train_image(image, "x", both, generator(k))
        assert (also == plain).all() or (also == plain[:, ::-1]).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(5, 90), st.integers(5, 90))
def test_a_crop_lies_inside_and_keeps_the_stated_share(seed: int, height: int, width: int) -> None:
    config = TransformConfig(height=16, width=16, crop_scale=(0.25, 0.5))
    pixels = train_image(png(slope(height, width)), "x", config, generator(seed))
    assert pixels.shape == (16, 16, 3)
    across = (int(pixels[..., 0].max()) - int(pixels[..., 0].min())) / 255
    down = (int(pixels[..., 1].max()) - int(pixels[..., 1].min())) / 255
    assert across * down <= 0.5 + 2 / min(height, width)


def test_a_scaled_jpeg_gives_the_crop_of_the_full_one() -> None:
    config = TransformConfig(height=32, width=32, crop_scale=(0.3, 1.0))
    image = slope(400, 600)
    for k in range(10):
        fast = train_image(jpeg(image), "x", config, generator(k)).astype(int)
        full = train_image(png(image), "x", config, generator(k)).astype(int)
        assert np.abs(fast - full).mean() < 3


def test_boxes_change_places_and_the_bars_stay() -> None:
    picture = boxes()
    seen = set()
    for order in permutations(range(3)):
        result = permute_boxes(picture, list(order))
        seen.add(result.tobytes())
        assert (result[:, 100:150] == 128).all() and (result[:, 250:300] == 128).all()
        for to, source in enumerate(order):
            assert (result[:, to * 150 : to * 150 + 100] == picture[:, source * 150 : source * 150 + 100]).all()
    assert len(seen) == 6
    assert (permute_boxes(picture, [0, 1, 2]) == picture).all()


def test_training_deals_the_boxes_in_all_orders_and_evaluation_in_none() -> None:
    config = TransformConfig(height=100, width=400, permute_boxes=True)
    data = png(boxes())
    assert len({train_image(data, "x", config, generator(k)).tobytes() for k in range(60)}) == 6
    assert (eval_image(data, config) == boxes()).all()


@pytest.mark.parametrize("shape", [(100, 100), (25, 100), (100, 401)])
def test_a_picture_without_three_boxes_is_a_bad_sample(shape: tuple[int, int]) -> None:
    with pytest.raises(BadSample, match="three boxes"):
        permute_boxes(np.zeros((*shape, 3), np.uint8), [0, 1, 2])


def test_normalise_takes_mean_and_deviation_out_of_each_channel() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = normalise(pixels, mean, std)
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(got[:, channel].double(), expected, atol=1e-6, rtol=1e-5)
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    "bad",
    [
        {"height": 0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.5)},
        {"std": (0.0, 1.0, 1.0)},
        {"resize": "lanczos"},
    ],
)
def test_senseless_settings_are_refused(bad) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        TransformConfig(**bad)


def test_randaugment_changes_no_other_draw_and_follows_from_the_generator() -> None:
    image = png(slope(60, 80))
    plain = TransformConfig(height=24, width=24, crop_scale=(0.3, 0.5), flip=True)
    more = replace(plain, randaugment=RandAugmentConfig(count=2, magnitude=7))
    changed = 0
    for k in range(40):
        one, two = (train_image(image, "x", config, generator(k)) for config in (plain, more))
        rng = generator(k)
        rng.random(5), rng.permutation(3)
        assert (two == randaugment(one, rng.random((2, 3)), RandAugmentConfig())).all()
        changed += bool((one != two).any())
    assert 20 < changed < 40


def test_evaluation_is_never_augmented() -> None:
    config = TransformConfig(height=8, width=8, crop_scale=(0.1, 0.2), flip=True, randaugment=RandAugmentConfig())
    assert config.augments
    assert (eval_image(png(slope(8, 8)), config) == slope(8, 8)).all()
    assert TransformConfig(randaugment=RandAugmentConfig()).augments


def test_the_draws_of_runs_without_randaugment_are_those_of_before() -> None:
    # Written down before RandAugment came: crop, mirror and boxes of two visits.
    config = TransformConfig(height=4, width=4, crop_scale=(0.3, 1.0), flip=True)
    got = [train_image(png(slope(60, 80)), "x", config, generator(k))[:, :, 0].tolist()[0] for k in (1, 2)]
    assert got == BEFORE
    deal = TransformConfig(height=100, width=400, permute_boxes=True)
    orders = []
    for k in range(4):
        dealt = train_image(png(boxes()), "x", deal, generator(k))
        orders.append(next(o for o in permutations(range(3)) if (permute_boxes(boxes(), list(o)) == dealt).all()))
    assert orders == ORDERS


@pytest.mark.parametrize(("height", "width"), [(300, 420), (40, 30)])
def test_bicubic_is_torchvisions_resize(height: int, width: int) -> None:
    rough = np.random.default_rng(3).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    config = TransformConfig(height=64, width=48, resize="bicubic")
    wanted = np.asarray(Resize((64, 48), InterpolationMode.BICUBIC)(Image.fromarray(image)))
    assert (eval_image(png(image), config) == wanted).all()
    # A JPEG is decoded at a smaller scale, of which hardly anything may be seen.
    exact = Resize((64, 48), InterpolationMode.BICUBIC)(Image.open(io.BytesIO(jpeg(image))).convert("RGB"))
    assert np.abs(eval_image(jpeg(image), config).astype(int) - np.asarray(exact)).mean() < 1.5
