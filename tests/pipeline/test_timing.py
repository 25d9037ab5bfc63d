"""Paired timing: what is computed from times, and in which order they are taken."""

from collections import Counter

import pytest
import torch

from pipeline.measure.saved_bytes import saved_bytes
from pipeline.measure.timing import (
    Lap,
    Spread,
    bracket,
    interleave,
    median_interval,
    paired_ratios,
    spread,
    timed_lap,
)


def test_ratios_pair_the_rounds() -> None:
    # The machine slowed down by half in round 2; the ratio does not notice.
    assert paired_ratios([2.0, 4.0, 3.0], [1.0, 2.0, 2.0]) == [2.0, 2.0, 1.5]


def test_rounds_that_do_not_match_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1.0, 2.0], [1.0])


def test_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(least=1.0, low=2.0, median=3.0, high=4.0)
    assert spread([1.0, 2.0]) == Spread(1.0, 1.25, 1.5, 1.75)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0)


def test_the_medians_interval_is_the_sign_tests() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_interval([6.0, 1.0, 4.0, 2.0, 5.0, 3.0]) == (1.0, 6.0)
    # Textbook ranks: second and ninth of ten, sixth and fifteenth of twenty.
    assert median_interval([float(n) for n in range(1, 11)]) == (2.0, 9.0)
    assert median_interval([float(n) for n in range(1, 21)]) == (6.0, 15.0)


def test_a_machine_that_slows_down_does_not_change_what_is_compared_beside_each_other() -> None:
    """Each lap takes a tenth longer than the one before it; the variants truly take 1/2 and 1/4 of the reference."""
    clock, called = [1.0], list[str]()

    def run(name: str, share: float) -> Lap:
        called.append(name)
        clock[0] += 0.1
        return Lap(share * clock[0], 2 * share * clock[0])

    runs = {
        "half": lambda: run("half", 0.5),
        "whole": lambda: run("whole", 1.0),
        "quarter": lambda: run("quarter", 0.25),
    }
    laps, beside = bracket(runs, "whole", rounds=4, warmup=2, seed=0)
    parts = [called[at : at + 5] for at in range(0, 30, 5)]
    assert all(part[::2] == ["whole"] * 3 and set(part[1::2]) == {"half", "quarter"} for part in parts)
    assert {name: len(own) for name, own in laps.items()} == {"half": 4, "quarter": 4, "whole": 12}
    assert beside["whole"] is laps["whole"]
    for name, ratio in (("half", 2.0), ("quarter", 4.0)):
        ratios = paired_ratios([lap.total for lap in beside[name]], [lap.total for lap in laps[name]])
        assert ratios == pytest.approx([ratio] * 4)


def order(seed: int, rounds: int) -> list[str]:
    called: list[str] = []

    def run(name: str) -> Lap:
        called.append(name)
        return Lap(float(len(called)), 0.0)

    laps = interleave(
        {name: lambda name=name: run(name) for name in "abc"},  # type: ignore[misc]
        rounds=rounds,
        warmup=2,
        seed=seed,
    )
    # Warm-up rounds are run and not counted; laps stand in the order of the rounds.
    assert len(called) == 3 * (rounds + 2)
    for name, own in laps.items():
        assert [lap.total for lap in own] == [at + 1 for at, other in enumerate(called) if other == name][2:]
    return called


def test_every_round_runs_each_variant_once_in_an_order_of_its_own() -> None:
    called = order(seed=0, rounds=20)
    parts = [tuple(called[at : at + 3]) for at in range(0, len(called), 3)]
    assert all(sorted(part) == ["a", "b", "c"] for part in parts)
    assert len(Counter(parts)) > 3
    assert order(seed=0, rounds=20) == called
    assert order(seed=1, rounds=20) != called


def test_a_lap_has_a_forward_a_backward_and_leaves_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    lap = timed_lap(lambda: weight * 2, torch.tensor([1.0, 2.0, 3.0]), torch.device("cpu"))
    assert lap.forward > 0
    assert lap.backward > 0
    assert lap.total == lap.forward + lap.backward
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 4.0, 6.0]


def test_saved_bytes_of_a_graph_worked_out_by_hand() -> None:
    weight = torch.randn(5, 4, requires_grad=True)
    x_34 = torch.randn(3, 4)

    def forward() -> torch.Tensor:
        hidden_35 = x_34 @ weight.T  # keeps x for the weight's gradient; the weight is a parameter
        bent_35 = hidden_35.exp()  # keeps its result
        return (bent_35 * bent_35).sum()  # keeps the same storage again, twice

    assert saved_bytes(forward, [weight]) == 4 * (3 * 4 + 3 * 5)
    assert saved_bytes(forward, []) == 4 * (3 * 4 + 3 * 5)  # x needs no gradient, so the weight is not kept


def test_parameters_do_not_count_and_views_count_their_storage_once() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    whole_68 = torch.randn(6, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        left_64, right_64 = whole_68.exp().chunk(2, 1)  # exp keeps its result, both halves look into it
        return ((left_64 @ weight) * (right_64 @ weight)).sum()  # keeps both products

    assert saved_bytes(forward, [weight]) == 4 * (6 * 8 + 2 * 6 * 4)
    assert saved_bytes(forward, []) == 4 * (6 * 8 + 2 * 6 * 4 + 4 * 4)


def test_nothing_is_saved_without_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp().exp(), []) == 0
