"""Captioners are settled on the words that they tell, as evaluation counts them, not on those of annotators."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.evaluation.classes import Costs
from pipeline.generation import BeamConfig
from pipeline.measure.latency import LatencyConfig
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classification import ClassificationModel
from pipeline.trim_plan import Examples, Plan
from pipeline.trim_settle import Settler, reached
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target
from tests.pipeline.small import MAX_TOKENS, scale, small_batch
from tests.pipeline.test_captioning import END, GIVEN, MIXED, PROMPT, model_with

SHORT = BeamConfig(beams=2, min_length=4, max_length=5)
AS_IT_COMES = BeamConfig(beams=2, min_length=4, max_length=MAX_TOKENS)


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def annotated(size: int) -> ImageTextBatch:
    """Captions of nine tokens behind the prompt."""
    batch = small_batch(size)
    ids = batch.token_ids.clamp(min=END + 1)
    ids[:, :GIVEN] = PROMPT
    ids[:, -1] = END
    return replace(batch, token_ids=ids, token_mask=torch.ones_like(batch.token_mask))


def examples_of(search: BeamConfig) -> Examples:
    def retell(model: ClassificationModel, batch: ImageTextBatch) -> ImageTextBatch:
        assert isinstance(model, CaptioningModel)
        return model.retold(batch, scale(batch.pixels), search, END)

    return Examples(annotated, scale, 16, LatencyConfig(), retell)


def told_costs(model: CaptioningModel, batch: ImageTextBatch, search: BeamConfig) -> Costs:
    """As evaluation counts them."""
    told, costs = model.tell(scale(batch.pixels), PROMPT, search, END), Costs()
    units = model.units(told)
    costs.add(model, units, model.macs(told.decisions, units))
    return costs


@pytest.mark.parametrize("unit", ["x", "GMACs"])
@pytest.mark.parametrize("search", [SHORT, AS_IT_COMES], ids=["short", "as it comes"])
def test_what_is_told_costs_what_was_wanted(search: BeamConfig, unit: str) -> None:
    model, batch = model_with(MIXED, beams=2), annotated(16)
    full = told_costs(model, batch, search).full
    amount = 1.5 if unit == "x" else sum(full) / len(full) / 1.5e9
    target = Target(amount, unit)  # type: ignore[arg-type]
    settled = Settler(model, target, batch, examples_of(search)).settle(Plan(1.5))
    costs = told_costs(model, batch, search)
    row = reached(target, costs.macs, costs.full, lambda: pytest.fail("no time was asked for"))
    assert row["reached"] == pytest.approx(amount, rel=0.03)
    assert row["reached"] == pytest.approx(settled.reached)
    assert settled.after == pytest.approx(costs.share)
    assert settled.before != settled.after and settled.shift


@torch.no_grad()
def test_cost_shares_are_those_of_telling_texts_so_long() -> None:
    model, batch = model_with(MIXED, beams=2), annotated(6)
    told = model.retold(batch, scale(batch.pixels), AS_IT_COMES, END)
    costs = told_costs(model, batch, AS_IT_COMES)
    assert (told.token_mask.sum(1) < batch.token_mask.sum(1)).any()
    shares = model.cost_shares(scale(batch.pixels), told.token_ids, told.token_mask)
    torch.testing.assert_close(shares * model.full_macs(units_of(model.backbone, told.token_mask)),
                               torch.tensor(costs.macs), check_dtype=False)  # fmt: skip
    longer = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    assert not torch.allclose(longer, shares), "lengths count"


def test_words_that_cannot_be_told_end_settling() -> None:
    model, batch = model_with(MIXED, beams=2), annotated(2)
    with torch.no_grad():
        model.backbone.text_decoder.cls.predictions.bias[0] = torch.nan
    with pytest.raises(UserError, match="2 of 2 scores of words are not finite numbers"):
        Settler(model, Target(1.5, "x"), batch, examples_of(SHORT)).settle(Plan(1.5))
