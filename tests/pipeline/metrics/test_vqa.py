"""VQA's accuracy, by the rules of the official evaluation."""

import pytest

from pipeline.metrics.vqa import normalised, vqa_accuracy, without_marks


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("the dog", "dog"),
        ("A  an THE", ""),
        ("two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # only one apostrophe at a time is known to be missing
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("oclock", "o'clock"),
        ("black-and-white", "black and white"),
        ("black -and- white", "black and white"),
        ("yes,no", "yes no"),
        ("yes, no", "yes no"),
        ("1,000-2", "10002"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        ("p.m", "pm"),
        ("10.5.", "10.5"),
        ("it's", "it's"),
        ("what\nis\tthis", "what is this"),
        ("  50% ", "50%"),
        ("a:b", "a:b"),
        (".5", ".5"),
        ("what?!", "what"),
        ("(left)", "left"),
    ],
)
def test_an_answer_is_normalised_as_officially(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_only_the_first_32_full_stops_go() -> None:
    assert without_marks("." * 40) == "." * 8


def test_three_of_ten_annotators_are_nearly_enough() -> None:
    others = ["cat"] * 7
    assert vqa_accuracy("dog", ["dog"] * 10) == 1
    assert vqa_accuracy("dog", ["dog"] * 3 + others) == pytest.approx(0.9)  # three of ten subsets hold but two
    assert vqa_accuracy("dog", ["dog"] * 2 + others + ["cow"]) == pytest.approx(0.6)
    assert vqa_accuracy("dog", ["dog"] + others + ["cow"] * 2) == pytest.approx(0.3)
    assert vqa_accuracy("pig", ["dog"] * 3 + others) == 0


@pytest.mark.parametrize(
    ("answer", "annotated", "accuracy"),
    [
        # All annotators say the same: nothing is done to either side.
        ("two dogs", ["two dogs"] * 10, 1),
        ("2 dogs", ["two dogs"] * 10, 0),
        ("the dog", ["the dog"] * 10, 1),
        ("Yes.", ["yes"] * 10, 0),
        ("yes", ["Yes"] * 10, 0),
        ("black-white", ["black-white"] * 10, 1),
        ("black white", ["black-white"] * 10, 0),
        ("none", ["none"] * 10, 1),
        # White space at the ends goes before they are compared, on both sides.
        ("red", ["red "] * 10, 1),
        (" red\n", ["red", "\tred"] * 5, 1),
        ("a red", ["a\tred"] * 10, 1),
        # They differ: both sides are normalised.
        ("two dogs", ["two dogs"] * 9 + ["cat"], 1),
        ("2 dogs", ["two dogs"] * 9 + ["cat"], 1),
        ("beach", ["the beach"] * 9 + ["sand"], 1),
        ("The Beach!", ["the beach"] * 9 + ["sand"], 1),
        ("yes", ["Yes"] * 9 + ["no"], 1),
        ("none", ["none"] * 6 + ["0"] + ["nothing"] * 3, 1),
        ("dont", ["don't"] * 5 + ["do not"] * 5, 1),
        ("black white", ["black-white"] * 9 + ["grey"], 1),
        ("Yes.", ["yes", "Yes"] * 5, 1),
    ],
)
def test_annotators_who_differ_are_normalised_with_the_answer(
    answer: str, annotated: list[str], accuracy: float
) -> None:
    assert vqa_accuracy(answer, annotated) == accuracy
