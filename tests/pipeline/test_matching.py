"""ToMe's matching and merging against a loop over its definition, in float64; and what they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.models.schedule import CLS, TokenStream, execute
from pipeline.pruning.matching import apply_matching, match, match_origin
from pipeline.pruning.tome import TokenMerging
from tests.pipeline.small import small_albef


def by_loop(x: Tensor, size: Tensor, metric: Tensor, merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """One picture, one token at a time: tokens, sizes, and which token each old one is now part of."""
    evens, odds = range(0, len(x), 2), range(1, len(x), 2)
    cosine = torch.nn.functional.cosine_similarity
    best = {}
    for even in evens[1:]:
        likeness = [float(cosine(metric[even], metric[odd], dim=0)) for odd in odds]
        number = likeness.index(max(likeness))
        best[even] = (likeness[number], odds[number])
    going = sorted(best, key=lambda even: -best[even][0])[:merged]
    stays = [even for even in evens if even not in going] + list(odds)
    now = torch.tensor([stays.index(best[old][1] if old in going else old) for old in range(len(x))])
    total, tokens = torch.zeros(len(stays), dtype=x.dtype), torch.zeros(len(stays), x.shape[1], dtype=x.dtype)
    for old, new in enumerate(now.tolist()):
        total[new] += size[old]
        tokens[new] += size[old] * x[old]
    return tokens / total[:, None], total, now


@given(st.integers(3, 14), st.data())
def test_matching_and_merging_are_the_definition(tokens: int, data: st.DataObject) -> None:
    merged = data.draw(st.integers(1, (tokens - 1) // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x, metric = torch.randn(2, 3, tokens, 4, dtype=torch.float64, generator=generator)
    size = torch.randint(1, 5, (3, tokens), generator=generator).double()
    matching = match(metric, merged)
    out, sizes = apply_matching(x, size, matching)
    origin = match_origin(torch.arange(tokens).expand(3, -1) + CLS, matching, CLS - 7)
    for row in range(3):
        wanted, total, now = by_loop(x[row], size[row], metric[row], merged)
        torch.testing.assert_close(out[row], wanted)
        torch.testing.assert_close(sizes[row], total)
        parts = [(now == new).nonzero().flatten().tolist() for new in range(tokens - merged)]
        assert origin[row].tolist() == [part[0] + CLS if len(part) == 1 else CLS - 7 for part in parts]


def test_a_token_that_nothing_goes_into_keeps_its_every_bit_and_so_does_cls() -> None:
    x = torch.randn(2, 9, 4)
    out, sizes = apply_matching(x, None, match(x, 2))
    assert torch.equal(out[:, 0], x[:, 0])
    for row in range(2):
        alone = out[row][sizes[row] == 1]
        assert all((x[row] == token).all(-1).any() for token in alone)


def test_several_tokens_may_go_into_one() -> None:
    metric = torch.tensor([[9.0, 9], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1]])[None]
    out, sizes = apply_matching(torch.arange(6.0)[None, :, None], None, match(metric, 2))
    assert sizes.tolist() == [[1, 3, 1, 1]]
    assert out.flatten().tolist() == pytest.approx([0, (1 + 2 + 4) / 3, 3, 5])


@pytest.mark.parametrize("merged", [0, 3])
def test_merging_nothing_or_more_than_there_are_pairs_is_an_error(merged: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        match(torch.randn(1, 6, 4), merged)


def test_gradient_flows_through_tokens_but_not_through_what_they_are_compared_by() -> None:
    x, metric = torch.randn(1, 7, 3, requires_grad=True), torch.randn(1, 7, 3, requires_grad=True)
    out, sizes = apply_matching(x, None, match(metric, 2))
    (out * sizes[..., None]).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    assert metric.grad is None
    assert not sizes.requires_grad


def test_sixteen_bits_stay_sixteen_bits_but_sizes_are_counted_exactly() -> None:
    x = torch.randn(1, 9, 4)
    size = torch.tensor([[1.0, 300, 1, 1, 1, 1, 1, 1, 1]])
    metric = torch.eye(9)[None]
    metric[0, 2] = metric[0, 1]
    with torch.autocast("cpu", torch.bfloat16):
        out, sizes = apply_matching(x.bfloat16(), size, match(metric, 1))
    assert out.dtype == torch.bfloat16
    assert sizes.max() == 301  # bf16 has 300 and 302


def test_merged_duplicates_change_nothing() -> None:
    """Proportional attention: with equal tokens merged, later layers give what they give for all of them."""
    tower = small_albef(depth=3).visual_encoder.double()
    x = torch.randn(2, 4, 32, dtype=torch.float64)
    doubled = torch.cat([x[:, :1], x[:, 1:].repeat_interleave(2, 1)], 1)  # CLS, a a b b c c: odd, even; odd, even; ...
    merging = TokenMerging([3, 0, 0])
    plain = execute(tower.steps, {"image": TokenStream(doubled)})["image"].x
    merged = execute(tower.steps, {"image": TokenStream(doubled)}, [merging])["image"]
    assert merged.size is not None
    assert merged.size.tolist() == [[1, 2, 2, 2]] * 2
    torch.testing.assert_close(merged.x, plain[:, [0, 1, 3, 5]])
    without = execute(tower.steps[1:], {"image": TokenStream(x)})["image"].x
    assert not torch.allclose(merged.x, without)


def test_merged_duplicates_change_nothing_for_words_that_attend_to_them() -> None:
    model = small_albef().double()
    ids = torch.randint(5, 50, (2, 9))
    text = model.encode_text(ids, torch.ones(2, 9).bool())
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    wanted = model.fuse(text, TokenStream(x[:, [0, 1, 1, 1, 2]])).text.x
    size = torch.tensor([[1.0, 3, 1]]).double().expand(2, -1)
    torch.testing.assert_close(model.fuse(text, TokenStream(x, size=size)).text.x, wanted)
