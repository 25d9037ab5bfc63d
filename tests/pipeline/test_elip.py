"""Selection, merging, guidance and configuration of ELIP."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.schedule import CLS, execute
from pipeline.pruning.elip import ElipConfig, TextGuidedPruning
from pipeline.pruning.intervention import ReplayedPruning
from pipeline.pruning.selection import apply_selection, select
from tests.pipeline.small import small_albef

STAGES = {"depths": (1, 1, 1, 1), "ratios": (0.9, 0.6, 0.3)}


def by_loop(x: Tensor, score: Tensor, keep: int) -> Tensor:
    """The definition, a Python loop over samples."""
    rows = []
    for row, weights in zip(x, score, strict=True):
        order = sorted(range(len(weights)), key=lambda j: (-float(weights[j]), j))
        kept, left = sorted(order[:keep]), order[keep:]
        merged = sum(weights[j] * row[1 + j] for j in left) / (sum(weights[j] for j in left) + 1e-6)
        rows.append(torch.stack([row[0], *[row[1 + j] for j in kept], merged]))
    return torch.stack(rows)


@given(st.integers(2, 12), st.data())
def test_selection_and_merging_are_the_definition(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x = torch.randn(2, 1 + tokens, 3, dtype=torch.float64, generator=generator)
    score = torch.rand(2, tokens, dtype=torch.float64, generator=generator).round(decimals=1)  # with ties
    torch.testing.assert_close(apply_selection(x, select(score, keep)), by_loop(x, score, keep))


def test_gradient_flows_through_merged_tokens_but_not_through_scores() -> None:
    x = torch.randn(1, 5, 3, requires_grad=True)
    score = torch.rand(1, 4, requires_grad=True)
    apply_selection(x, select(score, 2)).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).all()
    assert score.grad is None


def test_without_merging_the_others_are_gone() -> None:
    x, score = torch.randn(2, 6, 3), torch.rand(2, 5)
    assert apply_selection(x, select(score, 2, merge=False)).shape == (2, 3, 3)


@pytest.mark.parametrize("keep", [0, 4, 5])
def test_keeping_nothing_or_everything_is_an_error(keep: int) -> None:
    with pytest.raises(ValueError, match="at least one must stay"):
        select(torch.rand(1, 4), keep)


@pytest.mark.parametrize("guidance", ["stage", "query"])
def test_token_counts_and_origins_follow_the_stages(guidance: str) -> None:
    model = small_albef()
    tower = model.visual_encoder
    config = ElipConfig(guidance=guidance, **STAGES)  # type: ignore[arg-type]
    pruning = TextGuidedPruning(config, tower.steps, 16, torch.randn(3, 32))
    image = execute(tower.steps, {"image": tower.embed(torch.randn(3, 3, 32, 32))}, [pruning])["image"]
    assert image.x.shape == (3, int(16 * 0.3) + 2, 32)
    assert image.origin is not None
    assert (image.origin[:, 0] == CLS).all()
    assert (image.origin[:, -1] == CLS - 3).all()
    patches = image.origin[image.origin >= 0]
    assert patches.max() < 16


def test_guidance_by_stage_and_by_query_agree_where_a_stage_has_one_layer() -> None:
    model, pixels, sentence = small_albef(), torch.randn(3, 3, 32, 32), torch.randn(3, 32)
    tower = model.visual_encoder
    outs = []
    for guidance in ("stage", "query"):
        config = ElipConfig(guidance=guidance, **STAGES)  # type: ignore[arg-type]
        pruning = TextGuidedPruning(config, tower.steps, 16, sentence)
        outs.append(execute(tower.steps, {"image": tower.embed(pixels)}, [pruning])["image"].x)
    torch.testing.assert_close(outs[0], outs[1])


def test_the_text_decides_which_tokens_stay_but_never_enters_them() -> None:
    model, pixels = small_albef(), torch.randn(1, 3, 32, 32)
    tower = model.visual_encoder
    sentence = torch.randn(1, 32, requires_grad=True)
    pruning = TextGuidedPruning(ElipConfig(**STAGES), tower.steps, 16, sentence)  # type: ignore[arg-type]
    execute(tower.steps, {"image": tower.embed(pixels)}, [pruning])["image"].x.sum().backward()
    assert sentence.grad is None


def test_a_replay_prunes_another_tower_alike() -> None:
    model, pixels = small_albef(), torch.randn(2, 3, 32, 32)
    tower = model.visual_encoder
    pruning = TextGuidedPruning(ElipConfig(**STAGES), tower.steps, 16, torch.randn(2, 32))  # type: ignore[arg-type]
    first = execute(tower.steps, {"image": tower.embed(pixels)}, [pruning])["image"]
    again = execute(tower.steps, {"image": tower.embed(pixels)}, [ReplayedPruning(pruning)])["image"]
    torch.testing.assert_close(again.x, first.x)
    assert first.origin is not None and again.origin is not None
    assert torch.equal(first.origin, again.origin)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"ratios": (0.5, 0.6, 0.7)}, "fall from stage to stage"),
        ({"ratios": (0.9, 0.6)}, "one ratio for each"),
        ({"ratios": (1.0, 0.6, 0.5)}, "fall from stage to stage"),
        ({"vision_weight": 1.5}, "vision_weight"),
    ],
)
def test_impossible_settings_say_what_is_wrong(values: dict[str, object], names: str) -> None:
    with pytest.raises(UserError, match=names):
        ElipConfig(**values)  # type: ignore[arg-type]


def test_stages_must_fit_the_tower() -> None:
    with pytest.raises(UserError, match="add up to 12, the vision tower has 4"):
        ElipConfig().check(4, 16)
    with pytest.raises(UserError, match="keeps 0 of"):
        ElipConfig(ratios=(0.9, 0.65, 0.01)).check(12, 16)


def test_counts_are_truncated_in_double_precision() -> None:
    assert ElipConfig().keeps(196) == [176, 127, 78]
    assert ElipConfig(ratios=(0.9, 0.7, 0.45)).keeps(90) == [81, 62, 40]
    assert ElipConfig(count_base="tokens").keeps(196) == [177, 128, 78]
