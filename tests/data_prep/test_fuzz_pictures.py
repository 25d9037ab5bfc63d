"""Mutated pictures and texts: refused with a reason from a small set, or taken; never an exception of another kind."""

import json
import random

import pytest

from data_prep.images import BadImage, inspect_image
from data_prep.texts import BadText, read_fields
from tests.data_prep.mutations import KINDS, Mutation
from tests.data_prep.samples import picture

REASONS = {"not a JPEG, PNG or WebP picture", "broken picture", "picture too large"}


def mutated(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.randint(1, 3)):
        size = dice.randint(1, max(1, len(data) // 4))
        data = Mutation(dice.choice(KINDS), dice.random() ** 2, size, dice.getrandbits(64)).apply(data)
    return data


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_mutated_pictures_are_refused_with_a_reason_or_taken(extension):
    dice = random.Random(extension)
    whole = [picture(number, 48, extension) for number in range(4)]
    assert all(inspect_image(data).width == 48 for data in whole)
    refused = 0
    for _ in range(400):
        try:
            inspect_image(mutated(dice.choice(whole), dice))
        except BadImage as error:
            assert str(error) in REASONS
            refused += 1
    assert refused > 100


def test_mutated_texts_are_refused_with_a_reason_or_taken():
    dice = random.Random(0)
    whole = json.dumps({"captions": ["ä dog", "two"], "statements": [{"text": "x", "label": True}], "n": 1e5}).encode()
    refused = 0
    for _ in range(3000):
        try:
            assert isinstance(
                read_fields({"json": mutated(whole, dice), "txt": mutated(b"a dog", dice)})["captions"], list
            )
        except BadText as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"9" * 100_000, "JSON"),
        (b'"\\ud800"', "object"),
        (b'{"captions": ["\\ud800"]}', "half a character"),
        (b'{"captions": [], "statements": [{"text": "\\udfff", "label": 1}]}', "half a character"),
        (b'{"captions": [["a"]]}', "captions"),
        (b'{"captions": {"a": 1}}', "captions"),
        (b'{"caption": 5}', "captions"),
        (b'{"statements": {"text": "a"}}', "statements"),
        (b'{"statements": [{"text": 1, "label": true}]}', "statements"),
        (b'{"statements": [{"text": "a"}]}', "statements"),
        (b"\xff\xfe\x00", "JSON"),
    ],
)
def test_texts_that_no_reader_can_use_have_a_reason(text, reason):
    with pytest.raises(BadText, match=reason):
        read_fields({"json": text})
