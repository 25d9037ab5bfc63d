"""What the log says of trimmers: what they trim, and whose CLS they look at."""

import pytest

from pipeline.models.config import BackboneName
from pipeline.tasks.classes import NLVR2, Captions, Classes
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.fine_tuned import fine_tuned
from pipeline.tasks.generative_vqa import RankedAnswers
from pipeline.trimming.guides import guides_in_words
from pipeline.trimming.trimmers import TrimmerConfig, Trimmers
from tests.pipeline.small import small_model

ALONE = (
    "trimmers of the text in text layers 0 to 1 know nothing of the other modality yet, so the text's own CLS is used "
    "in its place"
)


def said_of(model: ClassificationModel) -> list[str]:
    assert isinstance(model.trimmers, Trimmers)
    return guides_in_words(model.backbone.schedule, set(model.trimmers)).split("; ")


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_what_stands_in_for_the_other_modality_is_said(backbone: BackboneName) -> None:
    said = said_of(ClassificationModel(small_model(backbone), TrimmerConfig(), together=False))
    if backbone != "blip":  # whose text alone has no trimmers
        assert said.pop(0) == ALONE
    vision, *fusion = said
    assert vision == "trimmers of the image in vision layers 0 to 3 look at the text's CLS"
    assert fusion[0] == "trimmers of the text in fusion layers 0 to 1 look at the image's CLS"
    assert len(fusion) == (2 if backbone == "meter" else 1)


@pytest.mark.parametrize(
    ("classes", "last"),
    [
        (
            Captions("captioning", ()),
            "trimmers of the image in decoder layers 0 to 1 look at the state of its first token",
        ),
        (
            RankedAnswers("vqa_generative", ("yes", "no"), ((0, 1, 2),) * 2),
            "trimmers of the question in decoder layers 0 to 1 look at the state of its first token",
        ),
        (NLVR2, "trimmers of the text in fusion layers 0 to 1 look at the mean of both images' CLS"),
    ],
    ids=["captioning", "vqa_generative", "nlvr2"],
)
def test_what_a_layer_trims_is_named_and_whom_it_looks_at(classes: Classes, last: str) -> None:
    assert said_of(fine_tuned(small_model("blip"), TrimmerConfig(), classes=classes))[-1] == last
