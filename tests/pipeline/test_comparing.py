"""How METER's fine-tuning for retrieval compares pairs: its loss by hand, which texts are false, what is configured."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from data_prep.errors import UserError
from pipeline.loop_config import LoopConfig
from pipeline.tasks.classes import RETRIEVAL
from pipeline.tasks.compared import Ranked
from pipeline.tasks.comparing import FalseTexts, Pairing, RetrievalConfig
from pipeline.trim_config import TrimConfig
from pipeline.trimming.methods import what_counts
from pipeline.trimming.target import Target
from tests.pipeline.small import small_batch
from tests.pipeline.test_retrieval_model import every_pair, model_of, task_of


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_meters_loss_is_that_of_the_own_text_among_others_of_the_batch() -> None:
    """By hand: of six pairs two are of one picture and two of the same words, which are nobody's false texts."""
    model, batch = model_of("meter"), small_batch(6)
    batch.sample_ids[1], batch.token_ids[3], batch.token_mask[3] = 0, batch.token_ids[2], batch.token_mask[2]
    same = torch.eye(6, dtype=torch.bool)
    for one, other in ((0, 1), (2, 3)):
        same[one, other] = same[other, one] = True
    drawn = FalseTexts.of(Pairing.of(batch), 3)
    every = every_pair(model, batch, [])[..., 1]  # the score of a match
    wanted, firsts = torch.zeros(()), list[bool]()
    for b, others in enumerate(drawn.rows_BC.tolist()):
        assert len(set(others)) == 3 and not same[b, others].any()
        scores = every[b, [b, *others]]
        wanted = wanted - scores.log_softmax(0)[0] / 6
        firsts.append(bool(scores[0] == scores.max()))
    losses = task_of(model, batch).losses(model, batch, 0.5)
    torch.testing.assert_close(losses.total, wanted)
    assert losses.scalars["accuracy"] == pytest.approx(sum(firsts) / 6) and "temperature" not in losses.scalars


def test_false_texts_are_other_ones_in_another_epoch_and_all_there_are_in_a_small_batch() -> None:
    batch = small_batch(4)
    pairing = Pairing.of(batch)
    assert [sorted(row) for row in FalseTexts.of(pairing, 15).rows_BC.tolist()] == [
        [other for other in range(4) if other != row] for row in range(4)
    ]
    many = small_batch(32)
    drawn = [FalseTexts.of(Pairing(Pairing.of(many).candidates, many.draw_seeds + epoch), 3) for epoch in (0, 100)]
    assert not torch.equal(drawn[0].rows_BC, drawn[1].rows_BC)
    batch.sample_ids[:3] = 7  # of one picture: the last text alone is false for it, and the last picture has three
    found = FalseTexts.of(Pairing.of(batch), 2)
    assert found.there_BC.tolist() == [[True, False]] * 3 + [[True, True]]
    assert found.rows_BC[:3, 0].tolist() == [3, 3, 3]
    model = model_of("meter")
    every = every_pair(model, batch, [])[..., 1]  # the score of a match
    loss = task_of(model, batch).losses(model, batch, 0.5).total
    rows = [every[b, [b, 3]] for b in range(3)] + [every[3, [3, 0, 1, 2]]]
    torch.testing.assert_close(loss, -torch.stack([row.log_softmax(0)[0] for row in rows]).mean())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_meters_divergence_is_over_the_candidates_of_each_picture() -> None:
    torch.manual_seed(0)
    there = torch.tensor([[True, True, True], [True, True, False]])
    given = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    sides = [Ranked.of(scores, there) for scores in given]
    wanted = torch.zeros(())
    for row, count in ((0, 3), (1, 2)):
        p, q = (scores[row, :count].softmax(0) for scores in given)
        wanted = wanted + (p * (p / q).log()).sum() / 2
    found = RETRIEVAL.divergence(*sides)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert given[1].grad is None and given[0].grad is not None and given[0].grad.isfinite().all()
    assert given[0].grad[1, 2] == 0


def test_no_more_false_texts_are_counted_than_a_part_of_the_batch_has() -> None:
    config = TrimConfig(task="retrieval", loop=LoopConfig(samples=8, global_batch=8))
    assert [config.within(part).retrieval.false_texts for part in (2, 8, 64)] == [1, 7, 15]
    assert config.within(2).of_task == {"retrieval": RetrievalConfig(false_texts=1)}
    assert TrimConfig(loop=LoopConfig(samples=8, global_batch=8)).within(1).of_task == {}
    with pytest.raises(UserError, match=r"trim\.retrieval\.false_texts=0 must be at least 1"):
        RetrievalConfig(false_texts=0)


def test_a_run_that_was_finished_before_there_were_false_texts_stays_so() -> None:
    given = asdict(TrimConfig(task="retrieval", loop=LoopConfig(samples=8, global_batch=8)))
    full = Target.parse(1.0)
    assert "retrieval" not in what_counts(given, full)
    few = {**given, "retrieval": {"false_texts": 3}}
    assert what_counts(few, full)["retrieval"] == {"false_texts": 3}
    assert "retrieval" not in what_counts({**few, "task": "statement"}, full)
