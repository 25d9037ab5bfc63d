"""`trimline flops`: the published counts, torch's own counter, and mistakes."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from launch.flops import flops_command
from pipeline.measure.model_flops import FlopsConfig, count_macs
from pipeline.models.blip_tasks import BlipPair
from pipeline.models.config import BackboneName
from pipeline.models.pairs import fuse_both
from tests.pipeline.small import MAX_TOKENS, WORDS, small_config, small_model


def gmacs(model: str, task: str, pixels: int, tokens: int, **more: Any) -> dict[str, float]:
    code, data, text = flops_command(model, pixels, {"task": task, "text_length": tokens, **more})
    assert code == 0 and data is not None and text.startswith(f"{model}, {task}, {pixels} x {pixels} px")
    assert data["image_size"] == pixels and data["text_length"] == tokens
    counts: dict[str, float] = data["gmacs"]
    assert counts["total"] == pytest.approx(sum(value for part, value in counts.items() if part != "total"))
    return counts


def test_meter_has_the_published_counts_by_module() -> None:
    counts = gmacs("meter_base", "vqa", 288, 10)
    assert counts["total"] == pytest.approx(48.3, rel=0.01)
    assert (counts["vision"], counts["text"]) == (pytest.approx(27.28, abs=0.01), pytest.approx(0.85, abs=0.01))
    assert counts["fusion"] + counts["head"] == pytest.approx(17.18 + 2.83 + 0.21, abs=0.02)
    assert gmacs("meter_base", "vqa", 384, 10)["total"] == pytest.approx(88.5, rel=0.01)


def test_blip_has_the_published_counts() -> None:
    counts = gmacs("blip_base", "nlvr2", 288, 19)
    assert counts["total"] == pytest.approx(71.2, rel=0.01)
    assert counts["vision"] == pytest.approx(2 * 29.74, abs=0.02)
    assert gmacs("blip_base", "vqa", 288, 10)["fusion"] == pytest.approx(5.65, abs=0.02)


def test_a_decoder_that_caches_costs_by_its_tokens_and_beams() -> None:
    one = gmacs("blip_base", "caption", 288, 4, new_tokens=1, beams=1)["head"]
    more = gmacs("blip_base", "caption", 288, 4, new_tokens=8, beams=1)["head"]
    wide = gmacs("blip_base", "caption", 288, 4, new_tokens=8, beams=3)["head"]
    keys = 12 * 2 * 325 * 768**2 / 1e9
    assert wide - keys == pytest.approx(3 * (more - keys))
    # A token costs its own maps, its scores, and attention to what is there: about a fifth of a GMAC.
    assert (more - one) / 7 == pytest.approx(0.1225, abs=0.01)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter", "clip"])
def test_a_pair_costs_what_torch_counts(backbone: BackboneName) -> None:
    model = small_model(backbone)
    ids, mask = torch.randint(5, WORDS, (1, MAX_TOKENS)), torch.ones(1, MAX_TOKENS, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        text, image = model.encode_text(ids, mask), model.encode_image(torch.randn(1, 3, 32, 32))
        if model.has_contrast:
            model.text_feature(text), model.image_feature(image)
        if model.fusion_steps:
            model.itm_head(model.fuse(model.begin_fusion(text, ids, mask), image).features_BF)
    counts = count_macs(small_config(backbone=backbone), FlopsConfig(task="retrieval", text_length=MAX_TOKENS))
    assert counter.get_total_flops() == 2 * counts["total"]


def test_a_pair_of_images_costs_what_torch_counts() -> None:
    config = small_config(backbone="blip")
    model = BlipPair(config)
    ids, mask = torch.randint(5, WORDS, (1, MAX_TOKENS)), torch.ones(1, MAX_TOKENS, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        first, other = (model.encode_image(torch.randn(1, 3, 32, 32)) for _ in range(2))
        text = model.begin_fusion(model.embed_text(ids, mask), ids, mask)
        model.cls_head(fuse_both(model, text, first, other).features_BF)
    assert (
        counter.get_total_flops() == 2 * count_macs(config, FlopsConfig(task="nlvr2", text_length=MAX_TOKENS))["total"]
    )


@pytest.mark.parametrize(
    ("model", "task", "tokens", "message"),
    [
        ("meter_huge", "vqa", 10, "no configuration"),
        ("clip_base", "vqa", 10, "flops knows clip for retrieval"),
        ("clip_base", "retrieval", 78, "more than the 77"),
        ("clip_base", "retrieval", 0, "text_length=0"),
    ],
)
def test_mistakes_are_told(model: str, task: str, tokens: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flops_command(model, None, {"task": task, "text_length": tokens})


def test_parts_that_a_model_does_not_have_are_left_to_json() -> None:
    _, data, text = flops_command("blip_tiny", None, {"task": "caption", "text_length": 10})
    assert data is not None
    absent = {part for part, gmacs in data["gmacs"].items() if gmacs == 0}
    assert absent and absent.isdisjoint(line.split()[0] for line in text.splitlines()[1:])


def test_a_size_that_is_no_multiple_of_the_patch_is_told() -> None:
    with pytest.raises(UserError, match=r"multiple of vision\.patch=16"):
        flops_command("albef_base", 250, {"task": "retrieval", "text_length": 25})
