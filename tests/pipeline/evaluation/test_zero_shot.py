"""Zero-shot classification: prompts, labels, ties, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.data.sample import EveryImage, values_at
from pipeline.evaluation.exported import Evaluation
from pipeline.evaluation.source import Source
from pipeline.evaluation.zero_shot import class_features
from pipeline.metrics.ranks import ranks_of
from pipeline.models.config import BackboneName
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.exports import COLOURS, TOKENIZER, export, lively, loader_of, split
from tests.pipeline.evaluation.test_retrieval import on_rank

TEMPLATES = ("a photo of a {}", "{} statement 3", "caption of {}")


def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return TOKENIZER.encode(texts, 9)


def test_a_class_is_the_mean_of_its_prompts() -> None:
    model = lively("clip")
    found = class_features(model, tokenize, COLOURS, TEMPLATES, 4, torch.device("cpu"))
    for name, feature in zip(COLOURS, found, strict=True):
        ids, mask = tokenize([template.replace("{}", name) for template in TEMPLATES])
        with torch.no_grad():
            each = model.text_feature(model.encode_text(ids, mask))
        torch.testing.assert_close(feature, F.normalize(each.mean(0), dim=0))


def asked(folder: Path, data: Path, **more: object) -> Evaluation:
    plain = Evaluation(model=folder, task="zero_shot", split=str(data), label_field="colour", templates=TEMPLATES)
    return replace(plain, **more)


@pytest.mark.parametrize("backbone", ["clip", "albef", "blip"])
def test_accuracy_is_the_share_of_nearest_classes_on_any_number_of_processes(
    tmp_path: Path, backbone: BackboneName
) -> None:
    folder, data = export(tmp_path / "export", backbone), split(tmp_path / "test", 23)
    model = lively(backbone)
    source = Source(split=data, loader=loader_of(model.config), tokenizer=TOKENIZER)
    (batch,) = source.batches(EveryImage(), 64, Process())
    with torch.no_grad():
        images = model.image_feature(model.encode_image(source.normalise(batch.pixels)))
    names = sorted(COLOURS)
    said = (images @ class_features(model, tokenize, names, TEMPLATES, 64, torch.device("cpu")).T).argmax(1)
    right = [names[at] == COLOURS[row % 3] for row, at in enumerate(said.tolist())]
    wanted = on_rank(Process(), asked(folder, data))
    (score,) = wanted["scores"]
    assert score["value"] == pytest.approx(100 * sum(right) / 23)
    assert wanted["more"] == {"classes": 3, "templates": 3, "accuracy_of_guessing": pytest.approx(100 / 3)}
    named = asked(folder, data, label_field="number", classes=COLOURS, batch_size=1)
    assert on_rank(Process(), named)["scores"] == wanted["scores"]
    if backbone == "clip":
        for world_size in (2, 3):
            assert run_ranks(on_rank, world_size, asked(folder, data, batch_size=1)) == [wanted] * world_size


def test_any_of_several_labels_is_right(tmp_path: Path) -> None:
    folder, data = export(tmp_path / "export", "clip"), split(tmp_path / "test", 8)
    one = on_rank(Process(), asked(folder, data, label_field="scene.0.colour"))
    any_of = on_rank(Process(), asked(folder, data, label_field="scene.*.colour"))
    assert one["more"]["accuracy_of_guessing"] == pytest.approx(100 / 3)
    assert any_of["more"]["accuracy_of_guessing"] == pytest.approx(50)  # every second image has two
    assert any_of["scores"][0]["value"] >= one["scores"][0]["value"]


def test_a_class_of_the_same_score_counts_as_nearer() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert ranks_of(scores, torch.tensor([[True, False, False], [True, True, False]])).tolist() == [1, 0]


def test_paths_into_fields() -> None:
    fields = {"scene": [{"kind": "star", "n": 2}, {"kind": "heart"}], "cls": 3, "flag": True, "deep": {"a": ["x", "y"]}}
    cases = {
        "cls": [3], "scene.*.kind": ["star", "heart"], "scene.1.kind": ["heart"], "scene.*.n": [2],
        "deep.a": ["x", "y"], "scene.7.kind": [], "scene.kind": [], "none": [], "cls.more": [], "flag": [], "scene": [],
    }  # fmt: skip
    assert {path: values_at(fields, path.split(".")) for path in cases} == cases


def test_mistakes_are_told(tmp_path: Path) -> None:
    folder, data = export(tmp_path / "export", "clip"), split(tmp_path / "test", 4)
    cases = {
        r"4 of 4 images have no label in --label-field color: s0, s1, s2 and 1 more; .* fields .*colour": {
            "label_field": "color"
        },
        "holds numbers such as 0: name the classes": {"label_field": "number"},
        "s2: colour is 'blue', which is none of the 2 classes": {"classes": ("red", "green")},
        "s2: number is 2, which is none of the 2 classes": {"classes": ("red", "green"), "label_field": "number"},
        "is 'red' everywhere": {"limit": 1},
    }
    for said, more in cases.items():
        with pytest.raises(UserError, match=said):
            on_rank(Process(), asked(folder, data, **more))
    with pytest.raises(UserError, match=r"has no \{\}"):
        asked(folder, data, templates=("a photo",))
    with pytest.raises(UserError, match="--label-field"):
        asked(folder, data, label_field=None)
    with pytest.raises(UserError, match="METER has no contrastive features"):
        on_rank(Process(), asked(export(tmp_path / "meter", "meter"), data))
