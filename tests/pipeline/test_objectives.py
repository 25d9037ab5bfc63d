"""Contrast, matching, masked words, momentum: by definition, and over two processes as on one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.objectives.itc import FeatureQueue, contrast
from pipeline.objectives.itm import draw_rows, matching_loss, negative_weights
from pipeline.objectives.mlm import Vocabulary, mask_words, word_loss
from pipeline.objectives.momentum import MomentumTower, averaged_parameters
from pipeline.process import Process
from pipeline.tasks.matching import true_first
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_albef

WORDS = Vocabulary(mask=4, size=50)


def features(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, 6, dtype=torch.float64, generator=generator), dim=1)


def queue_of(length: int) -> FeatureQueue:
    queue = FeatureQueue(6, length, torch.Generator().manual_seed(9), torch.device("cpu"))
    queue.image_EQ, queue.text_EQ = queue.image_EQ.double(), queue.text_EQ.double()
    return queue


def contrast_of_rows(rows: slice) -> dict[str, Tensor]:
    image, text = (features(8, seed)[rows].requires_grad_() for seed in (1, 2))
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    queue = queue_of(5)
    loss = contrast(image, text, features(8, 3)[rows], features(8, 4)[rows], queue, temperature, 0.4, chunk=3)
    loss.backward()
    queue.take()
    assert image.grad is not None and text.grad is not None and temperature.grad is not None
    return {
        "loss": loss.detach(), "image": image.grad, "text": text.grad, "temperature": temperature.grad,
        "queue": queue.image_EQ,
    }  # fmt: skip


def contrast_of_rank(process: Process) -> dict[str, Tensor]:
    share = 8 // process.world_size
    return contrast_of_rows(slice(process.rank * share, (process.rank + 1) * share))


@pytest.mark.timeout(120)
def test_contrast_over_two_processes_is_that_of_the_whole_batch() -> None:
    whole, parts = contrast_of_rows(slice(0, 8)), run_ranks(contrast_of_rank, 2)
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, whole["loss"])
    for name in ("image", "text"):  # gradients are averaged over processes
        torch.testing.assert_close(torch.cat([part[name] for part in parts]) / 2, whole[name])
    torch.testing.assert_close((parts[0]["temperature"] + parts[1]["temperature"]) / 2, whole["temperature"])
    for part in parts:
        torch.testing.assert_close(part["queue"], whole["queue"])


def test_contrast_is_computed_in_full_precision_under_autocast() -> None:
    online = [features(8, seed).float() for seed in (1, 2)]
    momentum = [features(8, seed).float() for seed in (3, 4)]
    losses = []
    for mixed in (False, True):
        queue = FeatureQueue(6, 5, torch.Generator().manual_seed(9), torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(contrast(*online, *momentum, queue, torch.tensor(0.01), 0.4, chunk=8))
    torch.testing.assert_close(losses[0], losses[1])


def words_of_rank(process: Process) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 11, dtype=torch.float64, generator=generator).requires_grad_()
    soft = torch.randn(7, 11, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 11, (7,), generator=generator)
    rows = slice(0, 7) if process.world_size == 1 else [slice(0, 2), slice(2, 7)][process.rank]
    loss = word_loss(scores[rows], target[rows], soft[rows], 0.3)
    loss.backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


@pytest.mark.timeout(120)
def test_masked_words_divide_by_the_count_of_all_processes() -> None:
    loss, gradient = words_of_rank(Process())
    parts = run_ranks(words_of_rank, 2)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
    torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, gradient)


def test_a_rank_without_masked_words_has_no_loss() -> None:
    empty = torch.zeros(0, 11, requires_grad=True)
    loss = word_loss(empty, torch.zeros(0, dtype=torch.long), empty.detach(), 0.3)
    loss.backward()
    assert float(loss.detach()) == 0


def test_the_queue_goes_round_and_holds_the_newest() -> None:
    queue = queue_of(5)
    numbered = torch.arange(1.0, 8.0, dtype=torch.float64)[:, None].expand(-1, 6)
    for start, stop in ((0, 3), (3, 6)):
        queue.push(numbered[start:stop], numbered[start:stop])
    assert queue.image_EQ[0].tolist() == [6, 2, 3, 4, 5]
    assert queue.next == 1
    queue.push(numbered, numbered)  # more than fits: the last five stay
    assert sorted(queue.text_EQ[0].tolist()) == [3, 4, 5, 6, 7]
    other = queue_of(5)
    other.load(queue.tensors())
    assert torch.equal(other.image_EQ, queue.image_EQ) and other.next == queue.next


def test_parts_of_an_update_see_the_queue_as_it_was_before() -> None:
    queue = queue_of(5)
    before = queue.image_EQ.clone()
    for seed in (1, 2):
        contrast(*(features(2, seed + k) for k in range(4)), queue, torch.tensor(0.1), 0.4, chunk=2)
        assert torch.equal(queue.image_EQ, before)
    queue.take()
    wanted = torch.cat([features(2, 3), features(2, 4)])
    torch.testing.assert_close(queue.image_EQ[:, :4].T, wanted)
    assert queue.next == 4


def test_no_pair_and_no_repeated_sentence_is_drawn_as_its_own_negative() -> None:
    torch.manual_seed(0)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    for chance in (0.0, 0.3, 0.7, 1 - 2**-53):
        rows = draw_rows(negative_weights(torch.randn(4, 4), same, torch.arange(4)), torch.full((4,), chance).double())
        assert not same[torch.arange(4), rows].any()


def test_negatives_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]], dtype=torch.float64).expand(4000, -1)
    drawn = draw_rows(weights, (torch.arange(4000) + 0.5).double() / 4000)
    assert torch.bincount(drawn, minlength=5).tolist() == [0, 1000, 0, 3000, 0]


def test_where_all_texts_are_the_same_a_negative_is_still_another_row() -> None:
    weights = negative_weights(torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool), torch.arange(3) + 1)
    assert torch.equal(weights, 1 - torch.eye(5, dtype=torch.float64)[1:4])


def test_matching_counts_the_first_third_as_true() -> None:
    right = torch.tensor([[-9.0, 9.0]] * 2 + [[9.0, -9.0]] * 4)
    true = true_first(2, right.device)
    assert float(matching_loss(right, true)) < 1e-6
    assert float(matching_loss(-right, true)) > 10


def test_masking_draws_words_only_and_in_the_stated_shares() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (4000, 10))
    mask = torch.arange(10) < 8
    mask = mask.expand_as(ids)
    masked = mask_words(ids, mask, torch.arange(4000), 0.15, WORDS)
    assert not masked.drawn_BL[:, 0].any() and not masked.drawn_BL[:, 8:].any()
    assert abs(masked.drawn_BL[:, 1:8].double().mean() - 0.15) < 0.01
    changed = masked.ids_BL[masked.drawn_BL]
    assert abs((changed == WORDS.mask).double().mean() - 0.8) < 0.02
    assert abs((changed == masked.target_M).double().mean() - 0.1) < 0.02
    assert torch.equal(masked.ids_BL[~masked.drawn_BL], ids[~masked.drawn_BL])


def test_what_stands_at_drawn_positions_is_found_by_their_numbers_as_by_the_mask() -> None:
    ids = torch.randint(5, 50, (6, 10))
    masked = mask_words(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(6), 0.4, WORDS)
    x_BLD = torch.randn(6, 10, 3)
    assert torch.equal(masked.target_M, ids[masked.drawn_BL])
    assert torch.equal(masked.at(x_BLD), x_BLD[masked.drawn_BL])
    assert torch.equal(replace(masked, places_M=None).at(x_BLD), x_BLD[masked.drawn_BL])


def test_a_row_is_masked_alike_in_every_batch_and_under_any_padding() -> None:
    ids, mask, seeds = torch.randint(5, 50, (64, 10)), torch.ones(64, 10, dtype=torch.bool), torch.randint(2**62, (64,))
    whole = mask_words(ids, mask, seeds, 0.3, WORDS)
    rows = torch.tensor([40, 3, 17])
    part = mask_words(ids[rows, :8], mask[rows, :8], seeds[rows], 0.3, WORDS)
    assert torch.equal(part.ids_BL, whole.ids_BL[rows, :8]) and torch.equal(part.drawn_BL, whole.drawn_BL[rows, :8])
    assert not torch.equal(whole.drawn_BL[:32], whole.drawn_BL[32:])


def test_negatives_keep_their_odds_beside_a_pair_that_scores_far_higher() -> None:
    logits = torch.tensor([[500.0, 1.0, 0.0], [0.0, 500.0, 0.0], [0.0, 0.0, 500.0]])
    weights = negative_weights(logits, torch.eye(3, dtype=torch.bool), torch.arange(3))
    torch.testing.assert_close(
        weights[0].float(), torch.tensor([0.0, 1.0, 0.0]).lerp(torch.tensor([0.0, 0.0, 1.0]), 0.26894142)
    )


def test_the_momentum_tower_follows_encoders_and_projections_only() -> None:
    model = small_albef()
    tower = MomentumTower(model, 0.9)
    before = {name: p.clone() for name, p in averaged_parameters(model)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    tower.update(model)
    for name, parameter in averaged_parameters(tower.model):
        torch.testing.assert_close(parameter, before[name] + 0.1)
    followed = {name for name, _ in averaged_parameters(tower.model)}
    assert not {"temp", "itm_head.weight"} & followed
    for name, parameter in tower.model.named_parameters():
        assert not parameter.requires_grad, name
