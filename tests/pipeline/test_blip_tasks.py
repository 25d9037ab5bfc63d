"""BLIP's fine-tuned models: what padding, ends and ranks must not or must change."""

import torch

from pipeline.models.blip_tasks import BLIP_MODELS, BlipAnswering
from pipeline.models.schedule import TokenStream
from pipeline.objectives.itc import SameImage
from pipeline.objectives.lm import caption_loss, next_words, text_losses
from pipeline.tasks.answering import answer_losses, rank
from pipeline.weights.sizes import _ratio
from tests.pipeline.small import WORDS, small_batch, small_config

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def answering() -> tuple[BlipAnswering, TokenStream]:
    torch.manual_seed(0)
    model = BlipAnswering(small_config(backbone="blip")).eval()
    batch = small_batch()
    return model, model.ask(None, batch.token_ids, batch.token_mask, model.encode_image(PIXELS))


@torch.no_grad()
def test_answers_do_not_depend_on_the_padding_of_questions() -> None:
    model, question = answering()
    assert question.present is not None
    assert not question.present.all()
    ids = torch.randint(5, WORDS - 2, (4, 3))
    rows = torch.arange(4)
    scores = model.answer(ids, torch.ones_like(ids), question, rows)
    changed = question.with_x(question.x.masked_fill(~question.present.bool()[..., None], 9.0))
    torch.testing.assert_close(model.answer(ids, torch.ones_like(ids), changed, rows), scores)


@torch.no_grad()
def test_the_best_candidate_is_the_one_with_the_smallest_loss() -> None:
    model, question = answering()
    ids = torch.randint(5, WORDS - 2, (6, 3))
    mask = torch.ones_like(ids)
    ranking = rank(model, ids, mask, question, 9)  # more than there are: all are scored
    losses = torch.stack(
        [answer_losses(model, ids, mask, question, torch.full((6,), row)) for row in range(len(question.x))]
    )
    assert torch.equal(ranking.best_B, losses.argmin(1))
    torch.testing.assert_close(ranking.scores_BK, -losses.gather(1, ranking.kept_BK))


def test_losses_of_texts_add_up_to_the_loss_of_captions() -> None:
    batch = small_batch()
    scores = torch.randn(*batch.token_ids.shape, WORDS)
    told = next_words(batch.token_mask)
    wanted = caption_loss(scores[told], batch.token_ids[told.roll(1, 1)])
    losses = text_losses(scores[told], batch.token_ids, batch.token_mask)
    torch.testing.assert_close(losses.sum() / told.sum(), wanted)
    assert not next_words(batch.token_mask, 3)[:, :2].any()
    assert torch.equal(next_words(batch.token_mask, 3)[:, 2:], told[:, 2:])


def test_pairs_of_the_same_image_are_all_positive() -> None:
    same = SameImage.of(torch.tensor([4, 5, 4]), torch.tensor([5, -100, 4]))
    positives = same.shares(slice(0, 3), torch.float64)
    assert torch.equal(positives[1:2], same.shares(slice(1, 2), torch.float64))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert torch.equal(positives[0], torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64) * third)
    assert torch.equal(positives[1], torch.tensor([0, 0.5, 0, 0.5, 0, 0], dtype=torch.float64))


def test_every_model_trains_all_its_weights() -> None:
    """What a loss does not reach would be an error in training."""
    batch = small_batch()
    for kind in ("blip_vqa", "blip_caption"):
        torch.manual_seed(0)
        model = BLIP_MODELS[kind](small_config(backbone="blip"))  # type: ignore[index]
        image = model.encode_image(PIXELS)
        if isinstance(model, BlipAnswering):
            question = model.ask(None, batch.token_ids, batch.token_mask, image)
            losses = answer_losses(model, batch.token_ids, batch.token_mask, question, torch.arange(4))
        else:
            states = model.fuse(model.embed_text(batch.token_ids, batch.token_mask), image).text.x
            told = states[next_words(batch.token_mask)]
            losses = text_losses(model.word_scores(told), batch.token_ids, batch.token_mask)
        losses.sum().backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_every_hidden_width_is_met() -> None:
    assert all(
        int(width * _ratio(hidden, width)) == hidden for width in range(8, 200, 4) for hidden in range(1, 900, 7)
    )
