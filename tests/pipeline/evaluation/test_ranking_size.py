"""Retrieval at the sizes that it is meant for, with drawn features: memory and time, as `-s` shows them.

    python -m pytest -m slow -s tests/pipeline/evaluation/test_ranking_size.py

Each part runs in a process of its own, whose peak is then the part's.
"""

import multiprocessing as mp
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.log_facts import process_peak_bytes
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import TokenStream
from pipeline.process import Process
from pipeline.tasks.gallery import Asked, Gallery
from pipeline.tasks.retrieval import ROWS_AT_ONCE, STRIP, contrast, matching_scores, rank_split
from tests.pipeline.small import small_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GIB = 2**30


def drawn_gallery(
    images: int, texts_each: int, embed: int, config: ModelConfig | None = None, here: int | None = None
) -> Gallery:
    """Features that are no better than chance; with a model's sizes also tokens, of the first `here` images."""
    generator = torch.Generator().manual_seed(0)
    texts = images * texts_each
    image_IE, text_TE = (F.normalize(torch.randn(n, embed, generator=generator), dim=-1) for n in (images, texts))
    mask_TL, text, tokens = torch.ones(texts, 1, dtype=torch.bool), None, dict[int, TokenStream]()
    if config is not None:
        mask_TL = torch.ones(texts, config.text.longest, dtype=torch.bool)
        text = TokenStream(torch.randn(*mask_TL.shape, config.text.width, generator=generator), mask_TL)
        size = (1, config.vision.patches + 1, config.vision.width)
        for number in range(images if here is None else here):
            tokens[number] = TokenStream(torch.randn(*size, generator=generator))
    return Gallery(
        images=[Asked(n, f"s{n}", f"s{n}", ("x",) * texts_each) for n in range(images)],
        owner_T=torch.arange(images).repeat_interleave(texts_each),
        mask_TL=mask_TL, image_IE=image_IE, text_TE=text_TE, text=text, tokens=tokens,
    )  # fmt: skip


def measured(function: Callable[..., Mapping[str, float]], *args: object) -> dict[str, float]:
    """What a function says in a process of its own, with that process's peak."""
    with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:  # tells of a process that was killed
        said = pool.submit(_peaked, function, *args).result()
    print(function.__name__, {name: float(f"{value:.4g}") for name, value in said.items()})
    return said


def _peaked(function: Callable[..., Mapping[str, float]], *args: object) -> dict[str, float]:
    torch.set_num_threads(1)
    before = process_peak_bytes() / GIB
    said = dict(function(*args))
    return {**said, "libraries_gib": before, "peak_gib": process_peak_bytes() / GIB}


def strips(gallery: Gallery, way: str, count: int, top: int) -> float:
    """Seconds that the first strips take in one direction, the last of them included in what is held of all."""
    if way == "texts":
        query, candidates, right = gallery.text_TE, gallery.image_IE, gallery.image_of
        asking = torch.arange(len(gallery.owner_T))
    else:
        query, candidates, right, asking = gallery.image_IE, gallery.text_TE, gallery.texts_of, gallery.asking
    rows = asking[: count * max(1, STRIP // len(candidates))]
    begin = time.perf_counter()
    found = contrast(query, candidates, rows, right, top, Process())
    seconds = time.perf_counter() - begin
    share = float(found.rank_Q.double().mean()) / len(candidates)
    assert share == pytest.approx({"texts": 1 / 2, "images": 1 / 6}[way], rel=0.2), "no better than chance"
    return seconds / len(rows) * len(asking)


def rank_100k(count: int) -> dict[str, float]:
    gallery = drawn_gallery(100_000, 5, 256)
    # Ranks and kept candidates of all queries, which a whole ranking holds at its end.
    held = [torch.ones(600_000, 128, dtype=torch.int32), torch.ones(600_000, dtype=torch.int64)]
    seconds = {f"{way}_whole_s": strips(gallery, way, count, 128) for way in ("images", "texts")}
    return {**seconds, "held_gib": sum(each.nbytes for each in held) / GIB}


@pytest.mark.parametrize("count", [4, pytest.param(10**9, marks=pytest.mark.timeout(7200))], ids=["4 strips", "whole"])
def test_100k_images_and_500k_captions_are_ranked_below_4_gib(count: int) -> None:
    said = measured(rank_100k, count)
    assert said["peak_gib"] < 4


def rank_1k(here: int) -> dict[str, float]:
    config = small_config()
    gallery = drawn_gallery(1000, 5, config.embed, config, here)
    torch.manual_seed(0)
    model = build_model(config).eval()
    before, begin = process_peak_bytes(), time.perf_counter()
    ranks = rank_split(model, gallery, 128, Process())
    assert ranks.image_Q.shape == (1000,) and ranks.text_T.shape == (5000,)
    assert int(ranks.text_T.min()) >= 0 and int(ranks.text_T.max()) < 1000
    return {"seconds": time.perf_counter() - begin, "more_gib": (process_peak_bytes() - before) / GIB}


def test_1k_images_and_5k_captions_are_reranked_to_the_end_in_bounded_memory() -> None:
    said = measured(rank_1k, 1000)
    assert said["more_gib"] < 0.25


def match_at_base_size(images: int) -> dict[str, float]:
    """ALBEF's published size at 384 px: the pairs of some images, one image after the other."""
    text = {"vocab_size": 100, "dropout": 0.0, "max_positions": 25}
    whole = ModelConfig.from_dict({"backbone": "albef", **_SIZES, "text": {**_SIZES["text"], **text}})
    gallery = drawn_gallery(1000, 5, 256, whole, images)
    torch.manual_seed(0)
    model = build_model(whole).eval()
    own = {"tokens_gib": 1000 * (whole.vision.patches + 1) * whole.vision.width * 4 / GIB}
    begin, peaks = time.perf_counter(), []
    for number in range(images):
        matching_scores(model, gallery, number, torch.arange(2 * ROWS_AT_ONCE))
        peaks.append(process_peak_bytes())
    seconds = (time.perf_counter() - begin) / images
    return {**own, "an_image_s": seconds, "grown_gib": (peaks[-1] - peaks[1]) / GIB}


_SIZES: dict[str, Any] = {
    "vision": {"height": 384, "width_px": 384, "depth": 1},
    "text": {"width": 768, "text_layers": 1, "fusion_layers": 6, "heads": 12, "type_rows": 2},
    "fusion": {}, "embed": 256, "temperature": 0.07,
}  # fmt: skip


def test_matching_at_base_size_holds_no_more_for_the_fourth_image_than_for_the_second() -> None:
    said = measured(match_at_base_size, 4)
    assert said["grown_gib"] < 0.1
