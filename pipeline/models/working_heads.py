"""Attention of packed instances that computes nothing of trimmed heads: their slices of the four maps stay unread.

B batch, T packed tokens of all instances, n of one, S packed source tokens, m of one, D width, H heads, h working ones,
d = D / H.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.attention import Keys, merge_heads, one_instance, split_heads
from pipeline.models.linear import faster_by_onednn, linear

# To copy and read its slices of the maps takes an instance as long as to send so many more tokens through them, so that
# several short instances, or with most heads at work, are faster through whole maps. By 8 to 12 heads of D 768, 2
# threads: 16 on an AMD EPYC, 86 on an Intel Xeon.
_COPY_IN_TOKENS = 64

Span = tuple[int, int]
"""First and last but one of the heads that lie side by side; as a slice of a weight it is a view and costs nothing."""


class Map(NamedTuple):
    """A linear map (out, in), or the part of one, such as the queries' third of ``qkv``."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear) -> "Map":
        """All of a layer."""
        return cls(linear.weight, linear.bias)


@dataclass(frozen=True)
class HeadMaps:
    """The maps of one attention; heads are consecutive rows of the first three and columns of the last.

    Attributes:
        query: (D, D).
        key: (D, source width).
        value: (D, source width).
        output: (D, D).
        heads: H.
    """

    query: Map
    key: Map
    value: Map
    output: Map
    heads: int


@dataclass(frozen=True)
class Source:
    """What packed queries attend to, each instance to its own tokens.

    Attributes:
        x_SD: Tokens, whose keys and values are made for working heads alone.
        offsets: B + 1 starts of the instances.
    """

    x_SD: Tensor
    offsets: Sequence[int]


def attend_with_working_heads(
    maps: HeadMaps, x_TD: Tensor, offsets: Sequence[int], source: Source | Keys, head_mask_BH: Tensor, causal: bool
) -> Tensor:
    """Multi-head attention and its output map, instance by instance.

    Equal to masking the contexts of trimmed heads with zero. On the CPU the slices win from small pictures on: what
    they save is arithmetic, and with few tokens the reading of weights.

    Args:
        maps: The attention's weights.
        x_TD: Tokens that ask.
        offsets: B + 1 starts of the instances in `x_TD`.
        source: What they attend to; `Keys` where those are made already (`keys_of_working_heads`), because several rows
            or passes share them.
        head_mask_BH: 1 for heads that work.
        causal: Whether a token sees only those up to its own place, the last one being at the last key.

    Returns:
        (T, D), the output's bias included.
    """
    spans_B = [spans_of(working) for working in head_mask_BH.bool().tolist()]
    wide = faster_by_onednn(x_TD, maps.query.weight)  # only of such it has been measured
    if isinstance(source, Source) and wide and _whole_is_faster(maps, offsets, spans_B):
        return _by_whole_maps(maps, x_TD, offsets, source, spans_B, causal)
    out_TD = x_TD.new_empty(len(x_TD), len(maps.output.weight))
    for row, spans in enumerate(spans_B):
        own = slice(offsets[row], offsets[row + 1])
        if spans:
            out_TD[own] = _instance(maps, spans, *_asked(maps, spans, x_TD, own, source, row), causal)
        else:
            out_TD[own] = 0.0 if maps.output.bias is None else maps.output.bias
    return out_TD


def _whole_is_faster(maps: HeadMaps, offsets: Sequence[int], spans_B: list[list[Span]]) -> bool:
    """Whether several instances had better share whole maps than have them sliced for each."""
    lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
    shares = [sum(stop - start for start, stop in spans) / maps.heads for spans in spans_B]
    sliced = sum(share * (length + _COPY_IN_TOKENS) for share, length in zip(shares, lengths, strict=True))
    return len(lengths) > 1 and sliced > offsets[-1]


def _by_whole_maps(
    maps: HeadMaps, x_TD: Tensor, offsets: Sequence[int], source: Source, spans_B: list[list[Span]], causal: bool
) -> Tensor:
    """(T, D): queries and the way out of all instances by whole maps at once; contexts of trimmed heads are 0.

    So are keys and values, where that is faster too.
    """
    size = _head_size(maps)
    q_TD = linear(x_TD, *maps.query)
    keys: Source | Keys = source
    if _whole_is_faster(maps, source.offsets, spans_B):
        k_SD, v_SD = linear(source.x_SD, *maps.key), linear(source.x_SD, *maps.value)
        keys = Keys(k_SD, v_SD, offsets=source.offsets)
    context_TD = torch.zeros_like(q_TD)
    for row, spans in enumerate(spans_B):
        own = slice(offsets[row], offsets[row + 1])
        if spans:
            q_nh = _columns(q_TD[own], spans, size)
            context_nh = _context(q_nh, *_keys(maps, spans, keys, row), spans, causal)
            parts = context_nh.split([size * (stop - start) for start, stop in spans], -1)
            for (start, stop), part in zip(spans, parts, strict=True):
                context_TD[own, start * size : stop * size] = part
    return linear(context_TD, *maps.output)


def keys_of_working_heads(
    maps: HeadMaps, x_SD: Tensor, offsets: Sequence[int], working_BH: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values (S, D) to be shared by several rows or passes; of heads that do not work they are 0, not made.

    Args:
        maps: The attention's weights.
        x_SD: Packed tokens that are attended to.
        offsets: B + 1 starts of the instances.
        working_BH: (B, H), 1 for heads of an instance that work in any of the rows.
    """
    made: list[list[Tensor]] = [[], []]
    # Neighbours with the same heads, such as the beams of a picture, go through one product.
    for working, rows in itertools.groupby(enumerate(working_BH.bool().tolist()), lambda each: each[1]):
        numbers, spans = [row for row, _ in rows], spans_of(working)
        own_mD = x_SD[offsets[numbers[0]] : offsets[numbers[-1] + 1]]
        for part, found in zip((maps.key, maps.value), made, strict=True):
            found.append(_in_place(part, own_mD, spans, _head_size(maps)))
    return torch.cat(made[0]), torch.cat(made[1])


def _in_place(part: Map, x_mD: Tensor, spans: list[Span], size: int) -> Tensor:
    """(m, D) what a map makes for the heads of some spans, each head where it stands; 0 elsewhere."""
    if not spans:
        return x_mD.new_zeros(len(x_mD), len(part.weight))
    (made_mh,) = _into_heads([part], x_mD, spans, size)
    if made_mh.shape[1] == len(part.weight):
        return made_mh
    whole_mD = made_mh.new_zeros(len(x_mD), len(part.weight))
    columns = [head * size + place for start, stop in spans for head in range(start, stop) for place in range(size)]
    whole_mD[:, columns] = made_mh
    return whole_mD


def spans_of(working: Sequence[bool]) -> list[Span]:
    """Runs of working heads.

    >>> spans_of([True, True, False, True])
    [(0, 2), (3, 4)]
    """
    edges = [head for head, now in enumerate(working) if now != (head > 0 and working[head - 1])]
    if len(edges) % 2:
        edges.append(len(working))
    return list(zip(edges[::2], edges[1::2], strict=True))


def _instance(maps: HeadMaps, spans: list[Span], q_nh: Tensor, k_mh: Tensor, v_mh: Tensor, causal: bool) -> Tensor:
    """(n, D) of one instance, from what was made for its working heads."""
    return _out_of_heads(maps.output, _context(q_nh, k_mh, v_mh, spans, causal), spans, _head_size(maps))


def _context(q_nh: Tensor, k_mh: Tensor, v_mh: Tensor, spans: list[Span], causal: bool) -> Tensor:
    """(n, h*d) what the working heads of an instance find."""
    heads = sum(stop - start for start, stop in spans)
    q, k, v = (split_heads(part, heads) for part in (q_nh, k_mh, v_mh))
    return merge_heads(one_instance(q, k, v, causal))


def _asked(
    maps: HeadMaps, spans: list[Span], x_TD: Tensor, own: slice, source: Source | Keys, row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (n, h*d) of an instance, keys and values (m, h*d) of what it attends to."""
    size = _head_size(maps)
    if isinstance(source, Source) and source.x_SD is x_TD:
        q_nh, k_nh, v_nh = _into_heads([maps.query, maps.key, maps.value], x_TD[own], spans, size)
        return q_nh, k_nh, v_nh
    (q_nh,) = _into_heads([maps.query], x_TD[own], spans, size)
    return q_nh, *_keys(maps, spans, source, row)


def _keys(maps: HeadMaps, spans: list[Span], source: Source | Keys, row: int) -> tuple[Tensor, Tensor]:
    """Keys and values (m, h*d) of what a row attends to."""
    size = _head_size(maps)
    if isinstance(source, Source):
        own_mD = source.x_SD[source.offsets[row] : source.offsets[row + 1]]
        k_mh, v_mh = _into_heads([maps.key, maps.value], own_mD, spans, size)
        return k_mh, v_mh
    assert source.offsets is not None, "packed queries need packed keys"
    place = row if source.rows is None else int(source.rows[row])
    shared = slice(source.offsets[place], source.offsets[place + 1])
    return _columns(source.k[shared], spans, size), _columns(source.v[shared], spans, size)


def _head_size(maps: HeadMaps) -> int:
    return len(maps.query.weight) // maps.heads


def _columns(x: Tensor, spans: list[Span], size: int) -> Tensor:
    return _joined([x[:, start * size : stop * size] for start, stop in spans])


def _into_heads(parts: Sequence[Map], x: Tensor, spans: list[Span], size: int) -> list[Tensor]:
    """(n, in) -> (n, h*d) of each map.

    One product with a copy of the working heads' weights is faster than one for each span of them, from a single token
    on: in a model no weight is in the cache when its layer's turn comes, so that a copy costs little more than reading.
    """
    slices = [slice(start * size, stop * size) for start, stop in spans]
    alike = len({part.bias is None for part in parts}) == 1
    if len(spans) == 1 or not alike:
        return [_joined([linear(x, *_rows(part, rows)) for rows in slices]) for part in parts]
    weights, biases = zip(*(_rows(part, rows) for part in parts for rows in slices), strict=True)
    bias = None if biases[0] is None else torch.cat(biases)
    return list(linear(x, torch.cat(weights), bias).chunk(len(parts), -1))


def _rows(part: Map, rows: slice) -> Map:
    """The map to some of its outputs."""
    return Map(part.weight[rows], None if part.bias is None else part.bias[rows])


def _out_of_heads(part: Map, context_nh: Tensor, spans: list[Span], size: int) -> Tensor:
    """(n, h*d) -> (n, out), by a copy of the working heads' columns."""
    columns = [part.weight[:, start * size : stop * size] for start, stop in spans]
    weight = columns[0] if columns[0].is_contiguous() else torch.cat(columns, -1)
    return linear(context_nh, weight, part.bias)


def _joined(parts: list[Tensor], dim: int = -1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
