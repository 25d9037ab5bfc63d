"""The one attention function: masks, subsets of heads, packed sequences, shared keys and values, sizes, the CLS row.

B batch, N queries, M keys, T and S packed tokens of all instances, D width, H heads, d = D / H.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.precision import at_least_float32

# A dropped key may score far above the kept ones; its weight only scales a gradient, so it is bounded. A larger bound
# would let one key outweigh all else in the gradient of a step.
LARGEST_EXPONENT = 10.0


@dataclass(frozen=True)
class Keys:
    """Keys and values, made once and attended to by any number of query rows.

    Attributes:
        k: (B', M, D) or, packed, (S, D).
        v: Same shape as `k`.
        present: (B', M), 1 or True where a key may be attended to; None where all may. A float mask with a
            gradient is applied as a straight-through weight.
        rows: (B,) the row of `k` that each query row attends to; None where query row b attends to row b.
        offsets: B + 1 starts of the instances in a packed `k`; None where it is not packed.
        causal: Whether a query sees only the keys up to its own position, the last query being at the last key.
        size: (B', M) how many equal keys each one stands for (proportional attention, ToMe's eq. 1); None where each
            stands for itself. No gradient flows to it.
        queries: How many query rows in turn attend to each row of `k`, which is then read once for all of them.
    """

    k: Tensor
    v: Tensor
    present: Tensor | None = None
    rows: Tensor | None = None
    offsets: Sequence[int] | None = None
    causal: bool = False
    size: Tensor | None = None
    queries: int = 1


@dataclass(frozen=True)
class Asked:
    """What a self-attention is asked: its projected queries (B, N, D) and keys, for those who want to look again."""

    q: Tensor
    keys: Keys
    heads: int


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., N, H*d) -> (..., H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., H, N, d) -> (..., N, H*d)."""
    return x.transpose(-3, -2).flatten(-2)


def attention(
    q: Tensor,
    keys: Keys,
    heads: int,
    *,
    head_mask_BH: Tensor | None = None,
    offsets: Sequence[int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head softmax attention, scores divided by sqrt(d).

    Args:
        q: Queries, (B, N, D), or packed (T, D) with `offsets`.
        keys: What is attended to.
        heads: Number of heads; each is a consecutive slice of D.
        head_mask_BH: 1 for heads that work, 0 for trimmed ones, whose context is zero.
        offsets: B + 1 starts of the instances in a packed `q`.
        dropout: Probability of dropping an attention weight.

    Returns:
        The context in the shape of `q`, before the output projection.
    """
    if offsets is not None:
        return _packed(q, keys, heads, head_mask_BH, offsets)
    context_BND = _padded(_side_by_side(q, keys), keys, heads, dropout).reshape(q.shape)
    if head_mask_BH is None:
        return context_BND
    context_BNHd = context_BND.unflatten(-1, (heads, -1))
    return (context_BNHd * head_mask_BH.to(context_BND.dtype)[:, None, :, None]).flatten(-2)


def _side_by_side(q_BND: Tensor, keys: Keys) -> Tensor:
    """Query rows that share a row of keys, as more queries of one row."""
    if keys.queries == 1:
        return q_BND
    assert not keys.causal and keys.rows is None, "rows that share their keys stand at no place among them"
    return q_BND.reshape(len(keys.k), -1, q_BND.shape[-1])


def _padded(q_BND: Tensor, keys: Keys, heads: int, dropout: float) -> Tensor:
    """(B, N, D) context of queries that are not packed."""
    q_BHNd = split_heads(q_BND, heads)
    keys = _by_query_row(keys)
    k_BHMd, v_BHMd = split_heads(keys.k, heads), split_heads(keys.v, heads)
    allowed = _allowed(q_BHNd, k_BHMd, keys.present, keys.causal)
    if fused_is_best(q_BHNd, keys.present):
        mask = _additive(allowed, keys.size, q_BHNd.dtype)
        context_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHMd, v_BHMd, mask, dropout)
    else:
        probabilities = _probabilities(q_BHNd, k_BHMd, keys, allowed)
        context_BHNd = F.dropout(probabilities, dropout).to(v_BHMd.dtype) @ v_BHMd
    return merge_heads(context_BHNd)


def attention_probabilities(q_BND: Tensor, keys: Keys, heads: int) -> Tensor:
    """The whole attention map, which `attention` does not write out; for analyses and distillation.

    Args:
        q_BND: Projected queries.
        keys: What is attended to, not packed.
        heads: Number of heads.

    Returns:
        (B, H, N, M) probabilities, before any dropout; 0 at keys that may not be attended to.
    """
    keys = _by_query_row(keys)
    q_BHNd, k_BHMd = split_heads(q_BND, heads), split_heads(keys.k, heads)
    return _probabilities(q_BHNd, k_BHMd, keys, _allowed(q_BHNd, k_BHMd, keys.present, keys.causal))


def cls_probabilities(
    q_BD: Tensor, x_BND: Tensor, key_weight_DD: Tensor, heads: int, present_BN: Tensor | None = None
) -> Tensor:
    """Softmax attention of one query to the tokens, without making keys.

    The key projection folds into the query: ``q . (W_k x_j) = (W_k^T q) . x_j``. The key's bias adds the
    same to every score of a row and falls out of the softmax.

    Args:
        q_BD: Projected query of the CLS token, bias included.
        x_BND: What the key projection would be given (normalised tokens).
        key_weight_DD: Weight of the key projection, (out, in).
        heads: Number of heads.
        present_BN: 1 or True where a token is there; None where all are.

    Returns:
        (B, H, N) probabilities over all tokens that are there.
    """
    head_dim = q_BD.shape[-1] // heads
    q_BHd = q_BD.unflatten(-1, (heads, head_dim))
    weight_HdD = key_weight_DD.unflatten(0, (heads, head_dim))
    folded_BHD = torch.einsum("bhd,hde->bhe", q_BHd, weight_HdD)
    scores_BHN = folded_BHD @ x_BND.transpose(1, 2) * head_dim**-0.5
    if present_BN is not None:
        scores_BHN = scores_BHN.masked_fill(~present_BN.bool()[:, None], -torch.inf)
    return scores_BHN.softmax(-1)


def cls_row(asked: Asked) -> Tensor:
    """Softmax attention of CLS to all tokens, mean over heads, from the keys that its layer has made anyway.

    In float32 at least, whatever autocast says: 16 bits are full of ties, and ties go to the lower position.

    Returns:
        (B, N) probabilities; their gradient flows to queries and keys.
    """
    with torch.autocast(asked.q.device.type, enabled=False):
        q_BHd = at_least_float32(asked.q[:, 0]).unflatten(-1, (asked.heads, -1))
        k_BHNd = split_heads(at_least_float32(asked.keys.k), asked.heads)
        scores_BHN = (k_BHNd @ q_BHd[..., None]).squeeze(-1) * q_BHd.shape[-1] ** -0.5
        if asked.keys.size is not None:
            scores_BHN = scores_BHN + asked.keys.size.log()[:, None]
        return scores_BHN.softmax(-1).mean(1)


def fused_is_best(q: Tensor, present: Tensor | None) -> bool:
    """Whether torch's fused kernel serves.

    It gives no gradient to a mask. And on a CPU in 16 bits its backward is slow: at 65 tokens 34 ms against 3 ms of
    the plain products, at 197 tokens 43 ms against 12 ms (torch 2.15, Zen 5, one thread; forward 4.3 against 2.1 ms).
    """
    slow_kernel = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    return not slow_kernel and not (present is not None and present.requires_grad)


def _by_query_row(keys: Keys) -> Keys:
    """The same with one row for each row of queries."""
    rows = keys.rows
    if rows is None:
        return keys
    # Not k[rows]: the backward of index_select is far faster, the more so before the heads are split.
    k, v = keys.k.index_select(0, rows), keys.v.index_select(0, rows)
    present = None if keys.present is None else keys.present[rows]
    size = None if keys.size is None else keys.size[rows]
    return replace(keys, k=k, v=v, present=present, size=size, rows=None)


def _allowed(q_BHNd: Tensor, k_BHMd: Tensor, present_BM: Tensor | None, causal: bool) -> Tensor | None:
    """True where a query may see a key: (B, 1, 1, M), (N, M) or (B, 1, N, M); None where all may."""
    present = None if present_BM is None else present_BM.bool()[:, None, None, :]
    if not causal:
        return present
    queries, seen = q_BHNd.shape[-2], k_BHMd.shape[-2]
    before_NM = torch.ones(queries, seen, dtype=torch.bool, device=q_BHNd.device).tril(seen - queries)
    return before_NM if present is None else before_NM & present


def _additive(allowed: Tensor | None, size_BM: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The fused kernel's mask: True where allowed or, with sizes, what is added to the scores."""
    if size_BM is None:
        return allowed
    added = size_BM.log().to(dtype)[:, None, None, :]
    return added if allowed is None else torch.where(allowed, added, -torch.inf)


def _probabilities(q_BHNd: Tensor, k_BHMd: Tensor, keys: Keys, allowed: Tensor | None) -> Tensor:
    """Scores, softmax over the allowed keys.

    The mask multiplies the exponentials, so that it carries a gradient, dropped keys' too (DynamicViT, eq. 10).
    """
    scores = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHMd.transpose(-1, -2)
    if keys.size is not None:
        scores = scores + keys.size.log()[:, None, None, :]
    present_BM = keys.present
    if allowed is None:
        return scores.softmax(-1)
    if present_BM is None or not present_BM.requires_grad:
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    assert allowed.shape[-2] == 1, "a causal stream's tokens are all outputs and are not trimmed"
    keep = present_BM.to(scores.dtype)[:, None, None, :]
    largest = scores.detach().masked_fill(keep.detach() < 0.5, -torch.inf).amax(-1, keepdim=True)
    weights = (scores - largest).clamp(max=LARGEST_EXPONENT).exp() * keep
    return weights / weights.sum(-1, keepdim=True)


def _packed(q_TD: Tensor, keys: Keys, heads: int, head_mask_BH: Tensor | None, starts: Sequence[int]) -> Tensor:
    """Instance by instance, on the tokens and heads that are there: no arithmetic on padding."""
    key_starts = keys.offsets
    assert key_starts is not None, "packed queries need packed keys"
    starts = starts[:: keys.queries]  # those of rows that share their keys lie side by side
    head_mask_BH = None if head_mask_BH is None else head_mask_BH[:: keys.queries]
    assert keys.size is None, "packed tokens stand for themselves alone"
    q_HTd, k_HSd, v_HSd = split_heads(q_TD, heads), split_heads(keys.k, heads), split_heads(keys.v, heads)
    context_HTd = torch.zeros_like(q_HTd)
    for row in range(len(starts) - 1):
        own = slice(starts[row], starts[row + 1])
        source = row if keys.rows is None else int(keys.rows[row])
        other = slice(key_starts[source], key_starts[source + 1])
        if head_mask_BH is None:
            context_HTd[:, own] = one_instance(q_HTd[:, own], k_HSd[:, other], v_HSd[:, other], keys.causal)
        else:
            active = head_mask_BH[row].nonzero().flatten()
            context_HTd[active, own] = one_instance(
                q_HTd[active, own], k_HSd[active, other], v_HSd[active, other], keys.causal
            )
    return merge_heads(context_HTd)


def one_instance(q_HNd: Tensor, k_HMd: Tensor, v_HMd: Tensor, causal: bool) -> Tensor:
    """(H, N, d) of one instance; where it is causal the last query is at the last key."""
    # The kernel's own causal mask has the first query at the first key: it would hide what a growing text has said.
    mask = _allowed(q_HNd, k_HMd, None, causal and q_HNd.shape[-2] > 1)
    return F.scaled_dot_product_attention(q_HNd[None], k_HMd[None], v_HMd[None], mask)[0]
