"""What decides is taught by the task, not by its cost alone: every trimmer, of all backbones, from the first step."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.data.batch import ImageTextBatch
from pipeline.exports import describe_method, load_classification_model
from pipeline.models.config import BackboneName
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classes import NLVR2, STATEMENT
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.generative_vqa import AnsweringTask
from pipeline.tasks.retrieval_model import RetrievalModel, RetrievalTask
from pipeline.trim import check_targets
from pipeline.trim_config import TrimConfig
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import threshold
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig, Trimmers
from pipeline.worker import parse
from tests.pipeline.small import MAX_TOKENS, scale, small_batch, small_model
from tests.pipeline.test_generative_vqa import TOKENIZER, asked
from tests.pipeline.test_generative_vqa import model_with as answering

BACKBONES: list[BackboneName] = ["albef", "blip", "meter"]
ELIP = ElipConfig(depths=(2, 1, 1), ratios=(0.8, 0.5))
MIXED = TrimmerConfig(keep_bias=0.5, last_std=0.5)
ALONE = SmartTrimConfig(cost_weight=0.0, distill_weight=0.0)


@pytest.fixture
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def untaught(model: ClassificationModel, task: ClassificationTask, batch: ImageTextBatch) -> list[str]:
    """Trimmers' parameters that the task's loss alone does not move."""
    task.losses(model, batch, 0.3).total.backward()
    assert model.trimmers is not None
    named = list(model.trimmers.named_parameters())
    assert named
    return [name for name, own in named if own.grad is None or not own.grad.abs().max() > 0]


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("kept", [None, ELIP], ids=["plain", "elip"])
@pytest.mark.parametrize("policy", [SMARTTRIM, Policy(tokens="local")], ids=["smarttrim", "local"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tasks_loss_alone_teaches_every_trimmer(
    backbone: BackboneName, policy: Policy, kept: ElipConfig | None
) -> None:
    model, batch = ClassificationModel(small_model(backbone), TrimmerConfig(), policy, pruning=kept), small_batch(8)
    task = ClassificationTask(model, scale, 1.3, ALONE, units_of(model.backbone, batch.token_mask))
    assert untaught(model, task, batch) == []


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_retrieval_teaches_the_trimmers_of_a_text_that_is_encoded_alone(backbone: BackboneName) -> None:
    model, batch = RetrievalModel(small_model(backbone), TrimmerConfig()), small_batch(8)
    task = RetrievalTask(model, scale, 1.3, ALONE, units_of(model.backbone, batch.token_mask))
    assert isinstance(model.trimmers, Trimmers) and "text_0_text" in model.trimmers
    assert untaught(model, task, batch) == []


@pytest.mark.usefixtures("doubles")
def test_answers_teach_every_trimmer() -> None:
    model, batch = answering(TrimmerConfig()).train(), asked(8)
    task = AnsweringTask(model, TOKENIZER, scale, 1.3, ALONE, units_of(model.backbone, batch.token_mask))
    assert untaught(model, task, batch) == []


@torch.no_grad()
def test_a_text_that_only_guides_is_run_whole_and_is_no_part_of_the_kept_shares() -> None:
    model, batch = ClassificationModel(small_model("blip"), TrimmerConfig(keep_bias=-50.0)).eval(), small_batch(4)
    trimming, units = model.trimming(batch.token_ids, batch.token_mask), units_of(model.backbone, batch.token_mask)
    assert trimming is not None
    model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    cost = model.cost_model()
    assert {place.part for place in cost.kept_by_place(trimming.decisions, units)} == {"vision", "fusion"}
    assert float(torch.stack(list(cost.kept_shares(trimming.decisions, units).values())).sum()) == 0
    guide = ClassificationModel(small_model("blip"), None, pruning=ELIP).full_macs_by_module(units)["text"]
    assert model.macs_by_module(trimming.decisions, units)["text"] == pytest.approx(guide) != 0


class Recorded:
    """A model's answers in the order in which training asked for them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.answers: list[Answers] = []

    def __call__(self, *inputs: Any) -> Answers:
        self.answers.append(self.model(*inputs))
        return self.answers[-1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_first_step_is_the_full_models_and_by_the_second_every_trimmer_learns(backbone: BackboneName) -> None:
    """Stable initialisation, with the recipe's own constants and precision: training's first two steps."""
    model, batches = (
        ClassificationModel(small_model(backbone), TrimmerConfig()).train(),
        [small_batch(8), small_batch(8, 1)],
    )
    task = ClassificationTask(model, scale, 1.3, SmartTrimConfig(), units_of(model.backbone, batches[0].token_mask))
    optimizer, recorded, moved = torch.optim.AdamW(model.parameters(), 1e-3), Recorded(model), set[str]()
    assert isinstance(model.trimmers, Trimmers)
    for batch in batches:
        task.before_update(0.0)
        losses = task.losses(recorded, batch, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        moved |= {name for name, own in model.trimmers.named_parameters() if own.grad is not None and own.grad.any()}
        optimizer.step()
        task.after_update(0.0)
    first = recorded.answers[0]
    assert first.trimmed_BA is not None and first.full_BA is not None
    torch.testing.assert_close(first.trimmed_BA, first.full_BA)
    assert moved == {name for name, _ in model.trimmers.named_parameters()}


def told(model: ClassificationModel, batch: ImageTextBatch) -> tuple[Tensor, list[str]]:
    """Packed answers and where was decided."""
    trimming, pixels = model.trimming(batch.token_ids, batch.token_mask), scale(batch.pixels)
    assert trimming is not None
    if model.backbone.pair is not None:
        pixels = torch.stack([pixels, pixels.flip(0)], 1)
    with torch.no_grad():
        return model.classify(pixels, batch.token_ids, batch.token_mask, [trimming]), list(trimming.decisions)


@pytest.mark.parametrize("classes", [STATEMENT, NLVR2], ids=["statement", "nlvr2"])
@pytest.mark.parametrize(
    ("policy", "kept"), [(Policy(trims_guide=True), None), (Policy(tokens="local", trims_guide=True), ELIP)]
)
def test_an_older_export_whose_guide_is_trimmed_answers_as_it_did(
    policy: Policy, kept: ElipConfig | None, classes: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, batch = (
        ClassificationModel(small_model("blip"), MIXED, policy, pruning=kept, classes=classes).eval(),
        small_batch(5),
    )
    described = {"kind": classes.task, "model": asdict(model.backbone.config)} | describe_method(model, "smarttrim")
    del described["method"]["policy"]["trims_guide"]  # there was no such key
    export_weights(tmp_path / "export", model.state_dict(), described)
    loaded, _ = load_classification_model(tmp_path / "export")
    (before_BA, sites), (after_BA, again) = told(model, batch), told(loaded, batch)
    assert torch.equal(before_BA, after_BA) and sites == again and "text_0_text" in sites
    now = ClassificationModel(loaded.backbone, MIXED, Policy(tokens=policy.tokens), pruning=kept, classes=classes)
    assert isinstance(now.trimmers, Trimmers) and isinstance(loaded.trimmers, Trimmers)
    assert set(now.trimmers) == {name for name in loaded.trimmers if not name.startswith("text_")}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "trips", "trips": {"fuse": False}}, "trim.trips.fuse=false"),
        ({"task": "captioning", "smarttrim": {"groups": ["text"]}}, "nothing to trim"),
    ],
)
def test_what_would_learn_nothing_is_refused_before_training_and_still_read(values: dict[str, Any], words: str) -> None:
    def config(*targets: float) -> TrimConfig:
        return parse(TrimConfig, {"loop": {"samples": 8, "global_batch": 4}, "targets": list(targets), **values})

    bare, unpruned = small_model("blip").to("meta"), PruningConfig(method="none")
    with pytest.raises(UserError, match=words):
        check_targets(config(1.0, 1.1), bare, unpruned, MAX_TOKENS)
    config(1.0, 1.1).check_taught([Target(1.0, "x")])  # what trims nothing has no method
    mended = {**values, "trips": {}, "smarttrim": {}}
    parse(TrimConfig, {"loop": {"samples": 8, "global_batch": 4}, **mended}).check_taught([Target(1.1, "x")])


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_masked_and_packed_agree_where_nothing_guides(backbone: BackboneName) -> None:
    """Texts alone: BLIP's is not encoded, METER's still looks at the picture."""
    model, batch = ClassificationModel(small_model(backbone), MIXED, Policy(groups=("text",))).eval(), small_batch(5)
    assert isinstance(model.trimmers, Trimmers) and model.trimmers.looks_at_text == (backbone != "blip")
    assert model.trimmers.together == (backbone == "meter")
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    ways = [model.trimming(*inputs[1:], gate) for gate in (threshold, None)]
    masked_BA, packed_BA = (model.classify(*inputs, [way]) for way in ways if way is not None)
    torch.testing.assert_close(masked_BA, packed_BA)
