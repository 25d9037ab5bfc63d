"""Accuracy of answers by the official rules of VQA v2 (Goyal et al., CVPR 2017; visualqa.org/evaluation).

The rules are those of the published evaluation program (GT-Vision-Lab/VQA, vqaEval.py as of a013f004), its oddities
included, so that a score here is the server's:

- All answers, predicted and annotated, lose white space at their ends. Where the annotators do not all say the same,
  all answers then lose punctuation and articles, spell numbers in digits and get their apostrophes back.
- Where they all say the same, nothing is done to either side: "Yes." is not "yes" then.
- Copies of an earlier revision (c4e6a0e, in ALBEF's, BLIP's and LAVIS's code) do all that to every prediction, and of
  annotators' answers take away punctuation alone: there "two dogs" by all ten is never met.
- A mark of punctuation that touches a space, or stands in a text with a comma between digits, goes without trace;
  others become a space. Full stops go unless a digit follows, the first 32 of them.
- An answer scores min(1, n / 3) against each leave-one-out set of annotators, n of whom gave it; the mean counts.
"""

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the program passes a flag where its library wants a count
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")

# An answer without its apostrophe, or without one of its two, gets it back. Words that are words without one ("were",
# "its", "id") are not among them.
_SHORT_FORMS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_APOSTROPHES = {bare: word for word in _SHORT_FORMS.split() for bare in _without_one_apostrophe(word)}
_APOSTROPHES["somebody'd"] = "somebodyd"  # sic


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def without_marks(text: str) -> str:
    """An answer without punctuation.

    >>> without_marks("black-and-white, mostly")
    'black and white mostly'
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    kept = text
    for mark in _MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if in_number or touches_space else " ")
    return _FULL_STOP.sub("", kept, count=_MOST_FULL_STOPS)


def normalised(answer: str) -> str:
    """An answer as it is compared where annotators differ, and as lists of answers have it.

    >>> normalised("The Two dogs, dont you think?")
    "2 dogs don't you think"
    """
    text = without_marks(_stripped(answer))
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Accuracy of one answer, 0 to 1.

    Args:
        answer: What was predicted, as it was written.
        annotated: What the annotators said, at least one of them; ten in the published data.
    """
    said, found = [_stripped(other) for other in annotated], _stripped(answer)
    if len(set(said)) > 1:
        said, found = [normalised(other) for other in said], normalised(found)
    agree = said.count(found)
    return sum(min(1.0, (agree - (other == found)) / 3) for other in said) / len(said)
