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
    kept_T = kept_T.clone()
    kept_T[list(stream.offsets[:-1])] = True
    ends = kept_T.cumsum(0)[[end - 1 for end in stream.offsets[1:]]]
    origin = None if stream.origin is None else stream.origin[kept_T]
    return replace(stream, x=stream.x[kept_T], origin=origin, offsets=(0, *ends.tolist()), memo=None)


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
