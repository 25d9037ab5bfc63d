"""METER's encoders side by side: the same encodings, and trimmers see the other's CLS at the same depth."""

import pytest
import torch

from pipeline.models.schedule import Step, Streams, site
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.guides import guides_in_words
from pipeline.trimming.smarttrim import MaskedTrimming, PackedTrimming
from pipeline.trimming.trimmers import TrimmerConfig, Trimmers
from tests.pipeline.small import scale, small_batch, small_model

MIXED = TrimmerConfig(keep_bias=0.3, last_std=0.5, width_share=0.2)


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Entering:
    """An intervention that remembers the CLS of both streams as they enter each layer."""

    def __init__(self) -> None:
        self.cls: dict[str, dict[str, torch.Tensor]] = {}

    def before(self, step: Step, streams: Streams) -> tuple[Streams, dict[str, object]]:
        for advance in step.advances:
            self.cls[site(step, advance)] = {name: stream.cls for name, stream in streams.items()}
        return streams, {}


@pytest.mark.parametrize("depth", [1, 2, 4])  # of vision; the text has 2 layers
def test_side_by_side_gives_what_one_after_the_other_gives(depth: int) -> None:
    model, batch = small_model("meter", depth=depth), small_batch(3)
    entering = Entering()
    text, image = model.encode_together(scale(batch.pixels), batch.token_ids, batch.token_mask, [entering])  # type: ignore[list-item]
    torch.testing.assert_close(text.x, model.encode_text(batch.token_ids, batch.token_mask).x)
    torch.testing.assert_close(image.x, model.encode_image(scale(batch.pixels)).x)
    alone = Entering()
    model.encode_text(batch.token_ids, batch.token_mask, [alone])  # type: ignore[list-item]
    model.encode_image(scale(batch.pixels), [alone])  # type: ignore[list-item]
    for layer in range(max(depth, 2)):
        for part, stream, other in (("text", "text", "image"), ("vision", "image", "text")):
            if (name := f"{part}_{layer}_{stream}") in entering.cls:
                seen, there = entering.cls[name], f"{'vision' if part == 'text' else 'text'}_{layer}_{other}"
                if there in alone.cls:  # the other has such a layer: its CLS as it enters it
                    torch.testing.assert_close(seen[other], alone.cls[there][other])


def test_trimmers_look_at_the_other_encoder_and_name_their_sites_alike() -> None:
    backbone = small_model("meter")
    model = ClassificationModel(backbone, MIXED)
    assert isinstance(model.trimmers, Trimmers) and model.trimmers.together
    said = guides_in_words(backbone.schedule_for(True)).split("; ")
    assert said[:2] == [
        "trimmers of the text in text layers 0 to 1 look at the image's CLS",
        "trimmers of the image in vision layers 0 to 3 look at the text's CLS",
    ]
    assert set(model.trimmers) == {site(step, a) for step in backbone.schedule for a in step.advances}


def test_a_text_layers_tokens_depend_on_the_picture() -> None:
    model, batch = ClassificationModel(small_model("meter"), MIXED).eval(), small_batch(4)
    decided = []
    for pixels in (batch.pixels, batch.pixels.flip(0)):
        trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
        model.classify(scale(pixels), batch.token_ids, batch.token_mask, [trimming])
        decided.append(trimming.decisions["text_1_text"].present_BN)
    assert decided[0] is not None and decided[1] is not None
    assert not torch.equal(decided[0], decided[1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masked_and_packed_execution_agree(seed: int) -> None:
    model, batch = ClassificationModel(small_model("meter", seed), MIXED).eval(), small_batch(5, seed)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    answers = [
        model.classify(*inputs, [one(model.trimmers)])  # type: ignore[arg-type]
        for one in (MaskedTrimming, PackedTrimming)
    ]
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9)


def test_where_pruning_waits_for_the_text_it_is_encoded_first() -> None:
    elip = ElipConfig(depths=(2, 1, 1), ratios=(0.8, 0.5))
    model = ClassificationModel(small_model("meter"), MIXED, pruning=elip)
    assert isinstance(model.trimmers, Trimmers) and not model.trimmers.together
    assert not ClassificationModel(small_model("albef"), MIXED).trimmers.together  # type: ignore[union-attr]
