"""Similarities and divergences: by hand, against loops over all pairs, and where each layer is seen."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.measure.similarity import (
    attention_divergence,
    head_similarity,
    mean_cosine,
    measure_divergence,
    measure_similarity,
)
from pipeline.models.config import BackboneName
from pipeline.models.vision import VisionTower
from tests.pipeline.small import scale, small_batch, small_config, small_model


def test_tokens_by_hand() -> None:
    x = torch.tensor([[[1.0, 0], [0, 2], [3, 3]], [[1, 0], [5, 0], [-2, 0]]])
    half = math.sqrt(0.5)  # cosines 0, half, half; and 1, -1, -1
    torch.testing.assert_close(mean_cosine(x), torch.tensor([2 * half / 3, -1 / 3]))
    torch.testing.assert_close(mean_cosine(x, torch.tensor([[1, 0, 1], [1, 1, 0]])), torch.tensor([half, 1.0]))


def test_the_sum_of_unit_vectors_stands_for_all_pairs() -> None:
    x = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row in range(3):
        pairs = [F.cosine_similarity(x[row, i], x[row, j], 0) for i, j in itertools.combinations(range(7), 2)]
        torch.testing.assert_close(mean_cosine(x)[row], torch.stack(pairs).mean(), rtol=0, atol=1e-12)


def test_heads_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]]])  # two heads: opposite first rows, same second
    torch.testing.assert_close(head_similarity(maps), torch.tensor([0.5]))
    torch.testing.assert_close(head_similarity(maps, torch.tensor([[0, 1]])), torch.tensor([1.0]))


def test_divergence_by_hand() -> None:
    first = torch.tensor([[[[1.0, 0], [0.25, 0.75]]]])
    second = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
    rows = [math.log(2), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
    torch.testing.assert_close(attention_divergence(first, second), torch.tensor([sum(rows) / 2]))
    torch.testing.assert_close(attention_divergence(first, second, torch.tensor([[0, 1]])), torch.tensor([rows[1]]))
    torch.testing.assert_close(attention_divergence(first, first), torch.zeros(1))
    maps = torch.softmax(torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0)), -1)
    assert attention_divergence(maps, maps * (1 + 1e-6)).item() == 0  # not a little less


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter", "clip"])
def test_every_layer_of_every_stream_is_seen(backbone: BackboneName) -> None:
    model = small_model(backbone).eval()
    batch = small_batch()
    rows = measure_similarity(model, scale, [batch, small_batch(seed=1)])
    expected = {
        (step.part, step.layer, advance.stream, metric)
        for step in model.schedule
        for advance in step.advances
        for metric in ("tokens", "heads")
    }
    assert {(row["part"], row["layer"], row["stream"], row["metric"]) for row in rows} == expected
    assert all(row["samples"] == 8 and row["low"] <= row["value"] <= row["high"] <= 1.0001 for row in rows)
    first = next(row for row in rows if row["part"] == "vision" and row["metric"] == "tokens")
    with torch.no_grad():
        entering = [model.visual_encoder.embed(scale(each.pixels)).x for each in (batch, small_batch(seed=1))]
    assert first["value"] == pytest.approx(float(mean_cosine(torch.cat(entering)).mean()))


def test_pairs_are_told_from_their_pictures_and_from_the_groups_of_these() -> None:
    batch = replace(small_batch(), keys=["a", "a", "b", "c"], clusters=["0", "0", "0", "1"])
    for rows in (
        measure_similarity(small_model("albef").eval(), scale, [batch]),
        measure_divergence(small_model("albef").eval(), small_model("albef").eval(), scale, [batch]),
    ):
        assert {(row["samples"], row["pictures"], row["groups"]) for row in rows} == {(4, 3, 2)}


def test_padding_does_not_count() -> None:
    model, batch = small_model("albef").eval(), small_batch()
    other = replace(batch, token_ids=batch.token_ids.masked_fill(~batch.token_mask, 7))
    text = [
        [row["value"] for row in measure_similarity(model, scale, [each]) if row["stream"] == "text"]
        for each in (batch, other)
    ]
    assert text[0] == pytest.approx(text[1], abs=1e-6)


def test_a_model_is_not_apart_from_itself() -> None:
    model, other = small_model("albef").eval(), small_model("albef", seed=1).eval()
    own = measure_divergence(model, model, scale, [small_batch()])
    assert [row["layer"] for row in own] == [0, 1, 2, 3]
    assert all(row["value"] == pytest.approx(0, abs=1e-6) for row in own)
    assert all(row["value"] > 1e-4 for row in measure_divergence(model, other, scale, [small_batch()]))


def test_what_cannot_be_compared_is_refused() -> None:
    model, deeper = small_model("albef").eval(), small_model("albef", depth=5).eval()
    with pytest.raises(UserError, match="depth 4 and 5"):
        measure_divergence(model, deeper, scale, [small_batch()])
    with pytest.raises(UserError, match="no pairs"):
        measure_similarity(model, scale, [])
    same = replace(small_batch(), clusters=["one"] * 4)
    with pytest.raises(UserError, match="4 pairs of one group of pictures give no interval"):
        measure_similarity(model, scale, [same])


def test_one_head_has_no_pair() -> None:
    model = small_model("albef").eval()
    model.visual_encoder = VisionTower(replace(small_config().vision, heads=1)).eval()
    rows = measure_similarity(model, scale, [small_batch()])
    assert {row["metric"] for row in rows if row["part"] == "vision"} == {"tokens"}
