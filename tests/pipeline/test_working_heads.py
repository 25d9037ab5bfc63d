"""Slices of the maps of working heads against contexts that are masked with zero."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.attention import Keys
from pipeline.models.blocks import FusedAttention, PostNormBlock
from pipeline.models.schedule import InBlock, TokenStream
from pipeline.models.working_heads import (
    HeadMaps,
    Map,
    Source,
    _whole_is_faster,
    attend_with_working_heads,
    spans_of,
)

WIDTH, HEADS = 12, 4
OFFSETS, SOURCES = (0, 75, 76, 101), (0, 90, 95, 96)  # few tokens, and many
SHORT = (0, 5, 6, 26)
MASKS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def stream_of(offsets: tuple[int, ...], width: int = WIDTH) -> TokenStream:
    return TokenStream(torch.randn(offsets[-1], width), offsets=offsets)


def alone(stream: TokenStream, row: int) -> TokenStream:
    """(1, n, D) one instance of a packed stream, padded execution."""
    assert stream.offsets is not None
    return TokenStream(stream.x[None, stream.offsets[row] : stream.offsets[row + 1]])


@pytest.mark.parametrize(
    ("working", "spans"),
    [
        ([1, 1, 1], [(0, 3)]),
        ([0, 0, 0], []),
        ([0, 1, 0], [(1, 2)]),
        ([1, 0, 1], [(0, 1), (2, 3)]),
        ([0, 1, 1], [(1, 3)]),
    ],
)
def test_spans(working: list[int], spans: list[tuple[int, int]]) -> None:
    assert spans_of([bool(head) for head in working]) == spans


@pytest.mark.parametrize("offsets", [OFFSETS, SHORT])
@pytest.mark.parametrize("sources", [SOURCES, SHORT])
def test_a_packed_block_with_trimmed_heads_is_each_instance_masked(
    offsets: tuple[int, ...], sources: tuple[int, ...]
) -> None:
    block = PostNormBlock(WIDTH, HEADS, 2 * WIDTH, source_width=8).eval()
    stream, source = stream_of(offsets), stream_of(sources, 8)
    inside = InBlock(self_BH=MASKS, cross_BH=MASKS.flip(0))
    got = block(stream, [source], inside).x
    for row in range(3):
        own = InBlock(self_BH=MASKS[row : row + 1], cross_BH=MASKS.flip(0)[row : row + 1])
        wanted = block(alone(stream, row), [alone(source, row)], own).x[0]
        torch.testing.assert_close(got[offsets[row] : offsets[row + 1]], wanted)


@pytest.mark.parametrize("offsets", [OFFSETS, SHORT])
@pytest.mark.parametrize("causal", [False, True])
def test_sliced_self_attention_is_the_masked_one(causal: bool, offsets: tuple[int, ...]) -> None:
    attention, stream = FusedAttention(WIDTH, HEADS), replace(stream_of(offsets), causal=causal)
    got = attention.sliced(stream, MASKS)
    for row in range(3):
        wanted = attention(attention.ask(replace(alone(stream, row), causal=causal)), MASKS[row : row + 1])[0]
        torch.testing.assert_close(got[offsets[row] : offsets[row + 1]], wanted)


WIDE_MASKS = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]])
LONG, SHORT_ONES = (0, 300, 305, 306, 646), (0, 20, 25, 26, 46)


@pytest.mark.parametrize("offsets", [LONG, SHORT_ONES])
@torch.no_grad()
def test_wide_slices_in_float32_are_the_masked_ones_in_float64(offsets: tuple[int, ...]) -> None:
    """Wide enough for oneDNN (`pipeline.models.linear`); long instances, and short ones, which share whole maps."""
    attention, stream = FusedAttention(512, HEADS).eval(), stream_of(offsets, 512)
    wanted = [attention(attention.ask(alone(stream, row)), WIDE_MASKS[row : row + 1])[0] for row in range(4)]
    got = attention.float().sliced(stream.with_x(stream.x.float()), WIDE_MASKS)
    torch.testing.assert_close(got.double(), torch.cat(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("offsets", "masks", "whole"),
    [
        (LONG, WIDE_MASKS, False),
        (SHORT_ONES, WIDE_MASKS, True),
        (LONG, torch.ones(4, 4), True),  # nothing to save
        (LONG, torch.zeros(4, 4), False),
        ((0, 5), WIDE_MASKS[:1], False),  # nobody to share with
    ],
)
def test_whole_maps_are_shared_by_instances_that_are_short_or_have_most_heads(
    offsets: tuple[int, ...], masks: Tensor, whole: bool
) -> None:
    maps = HeadMaps(*(Map.of(nn.Linear(4, 4)) for _ in range(4)), heads=4)
    assert _whole_is_faster(maps, offsets, [spans_of(row) for row in masks.bool().tolist()]) == whole


@pytest.mark.parametrize("offsets", [OFFSETS, SHORT])
def test_keys_that_rows_share_are_read_where_their_row_says(offsets: tuple[int, ...]) -> None:
    query, key, value, output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
    maps = HeadMaps(Map.of(query), Map.of(key), Map.of(value), Map.of(output), HEADS)
    stream, source = stream_of(offsets), stream_of(SOURCES)
    rows = torch.tensor([2, 0, 1])
    keys = Keys(key(source.x), value(source.x), rows=rows, offsets=SOURCES)
    got = attend_with_working_heads(maps, stream.x, offsets, keys, MASKS, causal=False)
    moved: list[Tensor] = [source.x[SOURCES[row] : SOURCES[row + 1]] for row in rows.tolist()]
    ends = (0, *torch.tensor([len(part) for part in moved]).cumsum(0).tolist())
    wanted = attend_with_working_heads(maps, stream.x, offsets, Source(torch.cat(moved), ends), MASKS, causal=False)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got[offsets[1] : offsets[1] + 1], output.bias[None])  # no head of the second works
