"""Ranks against a sort that puts wrong answers first among equals, and by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.metrics import ranks as ranks_module
from pipeline.metrics.ranks import ahead, best_right, ranks_of, recalls, reranked, top_candidates


def order_of(scores: list[float], right: list[bool]) -> list[int]:
    """Candidates by score; of equal ones wrong ones first, then earlier ones."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], right[at], at))


def rank_by_sort(scores: list[float], right: list[bool]) -> int:
    return next(place for place, at in enumerate(order_of(scores, right)) if right[at])


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[3.0, 2, 1, 0], [3, 3, 3, 3], [0, 5, 5, 1], [2, 2, 2, 1], [1, 2, 3, 4]])
    right = torch.tensor(
        [
            [True, False, False, False],  # first
            [True, False, False, False],  # all alike: behind the three others
            [True, False, True, False],  # the better of two, behind the wrong one of the same score
            [True, True, False, False],  # two right ones behind one wrong one
            [False, False, False, False],  # nothing is right: behind all
        ]
    )
    assert ranks_of(scores, right).tolist() == [0, 3, 1, 1, 4]
    assert recalls(torch.tensor([0, 4, 5, 10])) == {"R@1": [1, 0, 0, 0], "R@5": [1, 1, 0, 0], "R@10": [1, 1, 1, 0]}


def drawn(data: st.DataObject) -> tuple[Tensor, Tensor]:
    queries, candidates = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    levels = st.lists(st.integers(0, 3), min_size=candidates, max_size=candidates)
    scores = [data.draw(levels) for _ in range(queries)]
    right = [data.draw(st.lists(st.booleans(), min_size=candidates, max_size=candidates)) for _ in range(queries)]
    for row in right:
        row[data.draw(st.integers(0, candidates - 1))] = True
    return torch.tensor(scores).float(), torch.tensor(right)


@given(st.data())
def test_ranks_are_those_of_a_sort(data: st.DataObject) -> None:
    scores, right = drawn(data)
    wanted = [rank_by_sort(*row) for row in zip(scores.tolist(), right.tolist(), strict=True)]
    assert ranks_of(scores, right).tolist() == wanted
    cut = data.draw(st.integers(0, scores.shape[1]))
    best = best_right(scores, right)
    parts = [ahead(scores[:, part], right[:, part], best) for part in (slice(cut), slice(cut, None))]
    assert sum(parts).tolist() == wanted


@given(st.data())
def test_the_best_candidates_are_those_of_a_sort(data: st.DataObject) -> None:
    scores, right = drawn(data)
    top = data.draw(st.integers(1, scores.shape[1]))
    found = top_candidates(scores, right, top)
    for row, said in enumerate(found.tolist()):
        assert set(said) == set(order_of(scores[row].tolist(), right[row].tolist())[:top])


@given(st.data())
def test_reranking_is_a_sort_of_the_best_before_the_others(data: st.DataObject) -> None:
    scores, right = drawn(data)
    matched = torch.randint(0, 3, scores.shape, generator=torch.Generator().manual_seed(0)).float()
    top = data.draw(st.integers(1, scores.shape[1]))
    found = top_candidates(scores, right, top)
    ranks = reranked(ranks_of(scores, right), matched.gather(1, found), right.gather(1, found))
    for row, rank in enumerate(ranks.tolist()):
        first = order_of(scores[row].tolist(), right[row].tolist())
        best = sorted(first[:top], key=lambda at: (-float(matched[row, at]), bool(right[row, at])))
        whole = [*best, *first[top:]]
        # Other right candidates do not stand in the way of the best one.
        wanted = next(place for place, at in enumerate(whole) if right[row, at])
        assert rank == wanted


@pytest.mark.parametrize("top", [1, 2])
def test_nothing_is_found_by_a_model_that_tells_nothing_apart(top: int) -> None:
    scores, right = torch.zeros(3, 3), torch.eye(3).bool()
    assert ranks_of(scores, right).tolist() == [2, 2, 2]
    assert not right.gather(1, top_candidates(scores, right, top)).any()


@pytest.mark.parametrize("levels", [2, 7, 40, 10_000])
@pytest.mark.parametrize("candidates", [199, 200])
def test_the_best_of_many_candidates_are_those_of_a_sort(
    levels: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "_MEMBERS", 8)  # of 24 groups the best 5 are looked into
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (30, candidates), generator=generator).float()
    right = torch.rand(scores.shape, generator=generator) < 0.1
    right[0] = False
    found = top_candidates(scores, right, 5)
    for row, said in enumerate(found.tolist()):
        assert set(said) == set(order_of(scores[row].tolist(), right[row].tolist())[:5])
    wanted = [rank_by_sort(*pair) for pair in zip(scores[1:].tolist(), right[1:].tolist(), strict=True)]
    assert ranks_of(scores, right).tolist() == [candidates, *wanted]
