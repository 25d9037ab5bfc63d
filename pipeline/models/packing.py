"""Two layouts of a stream: padded (B, N, D), and packed (T, D) with nothing but the tokens that are there.

B batch, N tokens with the class token first, T packed tokens of all instances, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.models.schedule import TokenStream


def pack(stream: TokenStream) -> TokenStream:
    """Padded -> packed: only tokens that are there, instance after instance. A packed stream stays as it is."""
    if stream.offsets is not None:
        return stream
    assert stream.size is None, "packed tokens stand for themselves alone"
    size, length = stream.x.shape[:2]
    if stream.present is None:
        offsets = tuple(range(0, size * length + 1, length))
        origin = None if stream.origin is None else stream.origin.flatten()
        return replace(stream, x=stream.x.flatten(0, 1), origin=origin, offsets=offsets, memo=None)
    there_BN = stream.present.bool()
    offsets = (0, *there_BN.sum(1).cumsum(0).tolist())
    origin = None if stream.origin is None else stream.origin[there_BN]
    return replace(stream, x=stream.x[there_BN], present=None, origin=origin, offsets=offsets, memo=None)


def keep_packed(stream: TokenStream, kept_T: Tensor) -> TokenStream:
    """A packed stream without the tokens that go; CLS stays. What was made of all of them is forgotten."""
    assert stream.offsets is not None, "packed trimming needs packed streams"
    alone = len(stream.offsets) == 2
    kept_T = kept_T.clone()
    kept_T[0 if alone else list(stream.offsets[:-1])] = True
    places = kept_T.nonzero()[:, 0]
    if len(places) == len(kept_T):
        return stream if stream.memo is None else replace(stream, memo=None)
    ends = [len(places)]
    if not alone:
        ends = torch.searchsorted(places, torch.tensor(stream.offsets[1:], device=places.device)).tolist()
    origin = None if stream.origin is None else stream.origin.index_select(0, places)
    return replace(stream, x=stream.x.index_select(0, places), origin=origin, offsets=(0, *ends), memo=None)


def of_rows(stream: TokenStream) -> TokenStream:
    """A stream whose instances several rows share (`rows`) -> every row with tokens of its own; another stays."""
    if (rows := stream.rows) is None:
        return stream
    if stream.offsets is None:
        x = stream.x.index_select(0, rows)  # not x[rows], whose backward is far slower
        origin, present, size = (None if t is None else t[rows] for t in (stream.origin, stream.present, stream.size))
        return replace(stream, x=x, origin=origin, present=present, size=size, rows=None, memo=None)
    offsets = torch.tensor(stream.offsets, device=rows.device)
    lengths, begins = offsets.diff()[rows], offsets[rows]
    ends = lengths.cumsum(0)
    places = torch.arange(int(ends[-1]), device=rows.device) + (begins - ends + lengths).repeat_interleave(lengths)
    origin = None if stream.origin is None else stream.origin[places]
    x = stream.x.index_select(0, places)
    return replace(stream, x=x, origin=origin, offsets=(0, *ends.tolist()), rows=None, memo=None)


def stacked(first: TokenStream, second: TokenStream) -> TokenStream:
    """The rows of two streams of one layout and length, one after the other."""
    x = torch.cat([first.x, second.x])
    origin = _both(first.origin, second.origin)
    if first.offsets is None:
        present, size = _both(first.present, second.present), _both(first.size, second.size)
        return TokenStream(x, present, origin, causal=first.causal, size=size)
    assert second.offsets is not None, "both are packed, or none"
    offsets = (*first.offsets, *(len(first.x) + end for end in second.offsets[1:]))
    return TokenStream(x, None, origin, offsets, causal=first.causal)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def halves(stream: TokenStream) -> tuple[TokenStream, TokenStream]:
    """The first and the second half of the rows, each for itself."""
    if stream.offsets is None:
        half = len(stream.x) // 2
        return _rows(stream, slice(0, half)), _rows(stream, slice(half, None))
    half = len(stream.offsets) // 2
    ends = (0, stream.offsets[half], len(stream.x))
    parts = stream.offsets[: half + 1], tuple(end - ends[1] for end in stream.offsets[half:])
    first, second = (
        TokenStream(
            stream.x[begin:end], None, None if stream.origin is None else stream.origin[begin:end], offsets,
            causal=stream.causal,
        )
        for begin, end, offsets in zip(ends, ends[1:], parts, strict=False)
    )  # fmt: skip
    return first, second


def _rows(stream: TokenStream, rows: slice) -> TokenStream:
    origin, present, size = (None if t is None else t[rows] for t in (stream.origin, stream.present, stream.size))
    return TokenStream(stream.x[rows], present, origin, causal=stream.causal, size=size)


def spread(per_instance_BD: Tensor, stream: TokenStream) -> Tensor:
    """One row per instance -> something that broadcasts over its tokens, padded or packed."""
    if stream.offsets is None:
        return per_instance_BD[:, None]
    if len(per_instance_BD) == 1:
        return per_instance_BD
    lengths = torch.tensor(stream.offsets, device=per_instance_BD.device).diff()
    return per_instance_BD.repeat_interleave(lengths, 0)


def unpack(stream: TokenStream) -> TokenStream:
    """Packed -> padded to the longest instance. A padded stream stays as it is."""
    if stream.offsets is None:
        return stream
    lengths = torch.tensor(stream.offsets, device=stream.x.device).diff()
    parts = lengths.tolist()
    present_BN = torch.arange(max(parts), device=stream.x.device) < lengths[:, None]
    origin = None if stream.origin is None else pad_sequence(stream.origin.split(parts), batch_first=True)
    return replace(
        stream, x=pad_sequence(stream.x.split(parts), batch_first=True), present=present_BN, origin=origin, offsets=None
    )
