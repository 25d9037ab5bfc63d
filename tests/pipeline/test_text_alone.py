"""BLIP's text is encoded alone, and counted, only where something looks at it: the reference has no such pass."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.measure.model_flops import FlopsConfig, count_macs, steps_macs
from pipeline.models.build import build_model
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classes import NLVR2, SNLI_VE, STATEMENT, Classes
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.retrieval import matching_parts
from pipeline.trimming.cost import CostModel, units_of
from pipeline.trimming.ftkd import Layers, choose_layers
from pipeline.trimming.trimmers import TrimmerConfig
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
