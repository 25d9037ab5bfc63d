"""BLIP's text is encoded alone, and counted, only where something looks at it: the reference has no such pass."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.checkpoint import export_weights
from pipeline.exports import describe_method, load_classification_model
from pipeline.measure.model_flops import FlopsConfig, count_macs, steps_macs
from pipeline.measure.survivors import trimmed_sights
from pipeline.models.build import build_model
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classes import NLVR2, SNLI_VE, STATEMENT, Classes
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.retrieval import matching_parts
from pipeline.trimming.cost import CostModel, units_of
from pipeline.trimming.ftkd import Layers, choose_layers
from pipeline.trimming.trimmers import Policy, TrimmerConfig, Trimmers
from pipeline.trimming.vision_only import ReductionConfig
from tests.pipeline.small import scale, small_batch, small_config, small_model

ELIP = ElipConfig(depths=(2, 1, 1), ratios=(0.8, 0.5))
SMART = TrimmerConfig(keep_bias=2.0, last_std=0.5)


def counted(trims: Any, classes: Classes = STATEMENT, **more: Any) -> tuple[float, float, float]:
    """What torch counts of one instance, what we say it costs, and its text alone."""
    torch.manual_seed(0)
    model = ClassificationModel(small_model("blip"), trims, classes=classes, **more).eval()
    if model.trimmers is not None:
        model.trimmers.set_share(0.5)
    batch = small_batch(1, 3)
    length = int(batch.token_mask.sum())
    pixels, ids, mask = scale(batch.pixels), batch.token_ids[:, :length], batch.token_mask[:, :length]
    trimming = model.trimming(ids, mask)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        seen = torch.stack([pixels, pixels], 1) if classes == NLVR2 else pixels
        model.classify(seen, ids, mask, [] if trimming is None else [trimming])
    macs = float(model.macs({} if trimming is None else trimming.decisions, units_of(model.backbone, mask)))
    return counter.get_total_flops() / 2, macs, steps_macs(model.backbone.text_steps, {"text": length})


@pytest.mark.parametrize("classes", [STATEMENT, SNLI_VE, NLVR2], ids=["statement", "snli_ve", "nlvr2"])
def test_the_reference_costs_what_torch_counts_and_has_no_text_alone(classes: Classes) -> None:
    found, macs, alone = counted(None, classes)
    assert found == macs
    pruned, macs, _ = counted(None, classes, pruning=ELIP)  # whose sentence is the text's
    assert pruned == macs
    assert alone > 0


def test_the_reference_is_a_pair_without_contrast() -> None:
    """`trimline flops` counts a pair of retrieval, which has the text alone and projections besides."""
    found, macs, alone = counted(None)
    batch, config = small_batch(1, 3), small_config(backbone="blip")
    pair = count_macs(config, FlopsConfig(task="retrieval", text_length=int(batch.token_mask.sum())))
    model = small_model("blip")
    assert pair["text"] == alone
    assert macs == pair["total"] - alone - model.vision_proj.weight.numel() - model.text_proj.weight.numel()
    cost = CostModel(model, matching_parts(model), None, contrast=True)
    assert float(cost.full(units_of(model, batch.token_mask))) == pair["total"]
    assert found == macs


@pytest.mark.parametrize("method", ["evit", "tome", "trips"])
def test_only_methods_that_look_at_the_text_pay_for_it(method: Any) -> None:
    found, macs, alone = counted(ReductionConfig(name=method))
    assert found == pytest.approx(macs, rel=0.01)  # fusing tokens is no matrix product
    assert alone > 0.02 * macs


def test_trimmers_are_guided_by_the_text_and_pay_for_it() -> None:
    found, macs, _ = counted(SMART)
    assert found == pytest.approx(macs, rel=0.01)


BLIND = [
    Policy(tokens="local", heads="all"),
    Policy(tokens="local"),
    Policy(tokens="random"),
    Policy(tokens="all", heads="ranked"),
    Policy(tokens="all"),
    Policy(groups=("text",)),
    Policy(groups=("text", "msa", "mca")),
]


@pytest.mark.parametrize("classes", [STATEMENT, NLVR2], ids=["statement", "nlvr2"])
@pytest.mark.parametrize("policy", BLIND, ids=str)
def test_trimmers_that_do_not_ask_the_text_do_without_it(policy: Policy, classes: Classes) -> None:
    found, macs, _ = counted(SMART, classes, policy=policy)
    assert found == pytest.approx(macs, rel=1e-6 if not policy.asks else 0.01)  # a global score is no matrix product
    model, batch = ClassificationModel(small_model("blip"), SMART, policy, classes=classes), small_batch(3)
    assert isinstance(model.trimmers, Trimmers)
    assert {step.part for step in model.cost_model().steps} == {"vision", "fusion"}
    assert not [name for name in model.trimmers if name.startswith("text_")]
    if classes == STATEMENT:  # the watch for pictures of what survives asks for no text either
        image, text, macs_B = trimmed_sights(model.eval(), scale(batch.pixels), batch)
        assert {sight.part for sight in image} == {"vision"} and {sight.part for sight in text} == {"fusion"}
        assert (macs_B > 0).all()


def test_every_trimmer_without_a_text_alone_learns() -> None:
    torch.manual_seed(0)
    model, batch = ClassificationModel(small_model("blip"), SMART, Policy(tokens="local")), small_batch(8)
    units = units_of(model.backbone, batch.token_mask)
    task = ClassificationTask(model, scale, 1.5, SmartTrimConfig(), units)
    task.losses(model, batch, 1.0).total.backward()
    assert model.trimmers is not None
    for name, parameter in model.trimmers.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_kept_pruning_has_the_text_encoded_whole() -> None:
    model = ClassificationModel(small_model("blip"), SMART, Policy(tokens="local"), pruning=ELIP)
    assert isinstance(model.trimmers, Trimmers) and "text_0_text" not in model.trimmers
    found, macs, _ = counted(SMART, policy=Policy(tokens="local"), pruning=ELIP)
    assert found == pytest.approx(macs, rel=0.01)  # merging tokens is no matrix product


@pytest.mark.parametrize("policy", [Policy(tokens="local"), Policy(groups=("text", "msa"))], ids=str)
def test_an_older_export_with_trimmers_of_the_text_alone_answers_as_it_did(policy: Policy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = small_batch(4)
    model = ClassificationModel(small_model("blip"), SMART, policy).eval()
    before = Trimmers(model.backbone, SMART, policy, asked=True)
    assert isinstance(model.trimmers, Trimmers)
    before.load_state_dict(model.trimmers.state_dict(), strict=False)
    described = {"kind": "statement", "model": asdict(model.backbone.config), "target": 2.0}
    described |= describe_method(model, "local")
    del described["method"]["policy"]["trims_guide"]  # there was no such key
    weights = model.state_dict() | {f"trimmers.{name}": each for name, each in before.state_dict().items()}
    export_weights(tmp_path / "export", weights, described)
    loaded, _ = load_classification_model(tmp_path / "export")
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    answers = []
    for each in (model, loaded):
        trimming = each.trimming(batch.token_ids, batch.token_mask)
        assert trimming is not None
        answers.append(each.classify(*inputs, [trimming]))
    torch.testing.assert_close(*answers)


def test_modules_of_the_reference_sum_to_it_without_text() -> None:
    model = ClassificationModel(small_model("blip"), TrimmerConfig())
    units = units_of(model.backbone, small_batch(3).token_mask)
    modules = model.full_macs_by_module(units)
    assert modules["text"] == 0
    assert sum(modules.values()) == pytest.approx(float(model.full_macs(units).sum()), rel=1e-6)


def test_a_students_layers_are_solved_from_what_the_full_model_runs() -> None:
    whole, units = small_config(backbone="blip"), units_of(small_model("blip"), small_batch(4).token_mask)

    def macs(layers: Layers) -> float:
        return float(ClassificationModel(build_model(layers.cut(whole)), None).full_macs(units).mean())

    wanted = macs(Layers.of(whole)) / 1.6
    model = ClassificationModel(small_model("blip"), None)
    off = abs(macs(choose_layers(model.cost_model(), units, 1.6)) - wanted)
    students = [Layers(vision, text, text) for vision in range(1, 5) for text in range(1, 3)]
    assert off == min(abs(macs(student) - wanted) for student in students)
