"""The attention function: every way of asking gives what the plain definition gives, in float64."""

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import (
    Asked,
    Keys,
    attention,
    attention_probabilities,
    cls_probabilities,
    cls_row,
    merge_heads,
    split_heads,
)

HEADS, HEAD_WIDTH = 3, 4
WIDTH = HEADS * HEAD_WIDTH


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(q: Tensor, k: Tensor, v: Tensor, present: Tensor) -> Tensor:
    """One row, one head at a time; absent keys are left out."""
    out = torch.zeros_like(q)
    for row in range(len(q)):
        there = present[row].bool()
        for head in range(HEADS):
            part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            scores = q[row][:, part] @ k[row][there][:, part].T / HEAD_WIDTH**0.5
            out[row][:, part] = scores.softmax(-1) @ v[row][there][:, part]
    return out


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    present = torch.ones(2, 7)
    present[0, 4:] = 0
    return numbers(2, 5, WIDTH), numbers(2, 7, WIDTH, seed=1), numbers(2, 7, WIDTH, seed=2), present


def test_absent_keys_are_as_if_left_out(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, present = qkv
    torch.testing.assert_close(attention(q, Keys(k, v, present), HEADS), by_definition(q, k, v, present))


def test_a_mask_with_gradient_gives_the_same_numbers_and_reaches_dropped_keys(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, present = qkv
    mask = present.double().requires_grad_()
    out = attention(q, Keys(k, v, mask), HEADS)
    torch.testing.assert_close(out, by_definition(q, k, v, present))
    out.square().sum().backward()
    assert mask.grad is not None
    assert (mask.grad[0, 4:] != 0).all()


def test_a_dropped_key_that_scores_far_above_all_others_does_no_harm() -> None:
    q, v = torch.ones(1, 1, WIDTH), numbers(1, 3, WIDTH).float()
    k = torch.stack([torch.zeros(WIDTH), torch.full((WIDTH,), 500.0), torch.zeros(WIDTH)])[None]
    mask = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    out = attention(q, Keys(k, v, mask), HEADS)
    torch.testing.assert_close(out[0, 0], (v[0, 0] + v[0, 2]) / 2)
    out.sum().backward()
    assert mask.grad is not None
    assert mask.grad.isfinite().all()


def test_packed_instances_do_not_see_each_other(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, present = qkv
    lengths = present.sum(1).int().tolist()
    starts = [0, lengths[0], sum(lengths)]
    there = present.bool()
    packed = attention(
        q.flatten(0, 1), Keys(k[there], v[there], offsets=starts), HEADS, offsets=[0, q.shape[1], 2 * q.shape[1]]
    )
    torch.testing.assert_close(packed.view_as(q), by_definition(q, k, v, present))


def test_trimmed_heads_give_zero_padded_and_packed(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, _ = qkv
    heads = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    wanted = by_definition(q, k, v, torch.ones(2, 7)) * heads.repeat_interleave(HEAD_WIDTH, 1)[:, None]
    torch.testing.assert_close(attention(q, Keys(k, v), HEADS, head_mask_BH=heads), wanted)
    packed = attention(
        q.flatten(0, 1), Keys(k.flatten(0, 1), v.flatten(0, 1), offsets=[0, 7, 14]), HEADS,
        head_mask_BH=heads, offsets=[0, 5, 10],
    )  # fmt: skip
    torch.testing.assert_close(packed.view_as(q), wanted)


def test_shared_keys_are_those_of_the_named_row(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, present = qkv
    rows = torch.tensor([1, 0])
    wanted = by_definition(q, k[rows], v[rows], present[rows])
    torch.testing.assert_close(attention(q, Keys(k, v, present, rows), HEADS), wanted)


def test_the_cls_row_without_keys_is_the_row_with_keys() -> None:
    x, q = numbers(2, 6, WIDTH), numbers(2, WIDTH, seed=1)
    weight, bias = numbers(WIDTH, WIDTH, seed=2), numbers(WIDTH, seed=3)
    k = (x @ weight.T + bias).unflatten(-1, (HEADS, HEAD_WIDTH))
    scores = torch.einsum("bhd,bnhd->bhn", q.unflatten(-1, (HEADS, HEAD_WIDTH)), k) / HEAD_WIDTH**0.5
    torch.testing.assert_close(cls_probabilities(q, x, weight, HEADS), scores.softmax(-1))


def test_sixteen_bits_on_a_cpu_agree_with_float32(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, present = qkv
    half = attention(q.bfloat16(), Keys(k.bfloat16(), v.bfloat16(), present), HEADS)
    torch.testing.assert_close(half.double(), by_definition(q, k, v, present), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("straight_through", [False, True])
def test_a_key_of_size_three_weighs_as_three_equal_keys(
    qkv: tuple[Tensor, ...], padded: bool, straight_through: bool
) -> None:
    q, k, v, present = qkv
    size = torch.tensor([[1.0, 3, 1, 2, 1, 1, 2], [2.0, 1, 1, 1, 4, 1, 1]]).double()
    present = present if padded else torch.ones_like(present)
    mask = present.double().requires_grad_(straight_through)
    got = attention(q, Keys(k, v, mask, size=size), HEADS)
    for row in range(2):
        times = size[row].int()
        one = [t[row : row + 1].repeat_interleave(times, 1) for t in (k, v, present)]
        torch.testing.assert_close(got[row : row + 1], by_definition(q[row : row + 1], *one))


def test_sizes_go_with_the_rows_that_share_keys(qkv: tuple[Tensor, ...]) -> None:
    q, k, v, _ = qkv
    size = torch.tensor([[1.0, 3, 1, 2, 1, 1, 2], [2.0, 1, 1, 1, 4, 1, 1]]).double()
    rows = torch.tensor([1, 1])
    wanted = attention(q, Keys(k[rows], v[rows], size=size[rows]), HEADS)
    torch.testing.assert_close(attention(q, Keys(k, v, rows=rows, size=size), HEADS), wanted)


@pytest.mark.parametrize("size", [None, torch.tensor([[1.0, 3, 1, 2, 5], [2.0, 1, 1, 1, 4]]).double()])
def test_the_cls_row_is_what_attention_gives_cls(size: Tensor | None) -> None:
    """With values that are unit vectors the context is the row itself, head by head."""
    q, k = numbers(2, 5, WIDTH), numbers(2, 5, WIDTH, seed=1)
    rows = []
    for token in range(5):
        v = torch.zeros(2, 5, WIDTH, dtype=torch.float64)
        v[:, token] = 1.0
        rows.append(attention(q, Keys(k, v, size=size), HEADS)[:, 0].mean(-1))
    torch.testing.assert_close(cls_row(Asked(q, Keys(k, k, size=size), HEADS)), torch.stack(rows, 1))


@pytest.mark.parametrize("causal", [False, True])
def test_the_map_times_the_values_is_the_context(qkv: tuple[Tensor, ...], causal: bool) -> None:
    q, k, v, present = qkv
    keys = Keys(k, v, present, rows=torch.tensor([1, 0]), causal=causal)
    map_BHNM = attention_probabilities(q, keys, HEADS)
    torch.testing.assert_close(map_BHNM.sum(-1), torch.ones(2, HEADS, 5, dtype=torch.float64))
    torch.testing.assert_close(merge_heads(map_BHNM @ split_heads(v[keys.rows], HEADS)), attention(q, keys, HEADS))
