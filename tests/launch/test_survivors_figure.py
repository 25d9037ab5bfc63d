"""What is said of what sentences have in common, and which steps fit into the figure."""

import pytest
import torch

from launch.analyse_survivors import _in_common
from launch.report.survivor_rows import Step
from launch.survivors_figure import Kept, shown_steps


def kept(*steps: set[int]) -> Kept:
    patches = [Step(f"vision layer {at + 1}", frozenset(left)) for at, left in enumerate(steps)]
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    return Kept(picture="a", sentence="b", pixels=pixels, grid=(2, 2), patches=patches, tokens=(), words=[])


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (kept({0, 1, 2}, {0, 1}), kept({0, 1, 2}, {0, 1}), "all 2 sentences keep the same patches, at every step"),
        (kept({0, 1, 3}, {0, 1}), kept({0, 1, 2}, {0, 1}), "the same patches in the end, though not at every step"),
        (kept({0, 1, 3}, set()), kept({0, 1, 2}, set()), "no patch is left in the end"),
        (kept({0, 1}), kept({1, 2}), "both keep 33%"),
    ],
)
def test_what_sentences_have_in_common(first: Kept, second: Kept, said: str) -> None:
    assert said in _in_common([first, second])


def test_steps_are_shown_from_the_first_to_the_last() -> None:
    assert shown_steps([kept(*[{0}] * 12)]) == [f"vision layer {at}" for at in (1, 3, 5, 8, 10, 12)]
    assert shown_steps([kept({0}, {1})]) == ["vision layer 1", "vision layer 2"]
