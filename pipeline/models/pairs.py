"""Two pictures with one text (NLVR2): the text with each of them apart, or with both at once.

Both pictures go through the vision tower as rows of one batch: all left ones, then all right ones.

B batch, D width, F width of the fused features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.backbone import Backbone, Fused, PairWay
from pipeline.models.blocks import PairAttention, PostNormBlock, ResidualAttention
from pipeline.models.meter import Meter
from pipeline.models.packing import halves, stacked
from pipeline.models.schedule import Intervention, TokenStream, execute


def own_way(backbone: Backbone) -> PairWay:
    """A backbone's published way; ALBEF is read as BLIP is."""
    return "passes" if isinstance(backbone, Meter) else "both"


def begin_pairs(backbone: Backbone, way: PairWay) -> None:
    """Makes a pre-trained backbone one that reads pairs, in place; one that does so already stays as it is.

    The second picture begins as the first one did: in METER by its token type, elsewhere by its projections.

    Raises:
        UserError: METER is to read both at once, or the backbone has been fine-tuned the other way.
    """
    if backbone.pair == way:
        return
    if backbone.pair is not None or (isinstance(backbone, Meter) and way == "both"):
        known = backbone.pair or "passes"
        raise UserError(f"trim.pair={way} does not go with this {backbone.config.backbone}, which has {known}")
    if isinstance(backbone, Meter):
        with torch.no_grad():
            types = backbone.token_type_embeddings.weight
            types[2] = types[1]
    backbone.pair = way
    if way == "both":
        _attend_to_both(backbone)


def _attend_to_both(backbone: Backbone) -> None:
    """The upper half of the text layers joins by a linear map, as BLIP's; all that ALBEF fuses with are of it."""
    text = backbone.config.text
    below, depth = (text.text_layers if text.fusion_layers else 0), text.text_layers + text.fusion_layers
    for number, step in enumerate(backbone.fusion_steps, below):
        block = step.advances[0].block
        assert isinstance(block, PostNormBlock)
        block.crossattention = of_both(block.crossattention, 2 * number >= depth)


def of_both(single: nn.Module, merged: bool) -> PairAttention:
    """Cross-attention to two pictures that begins as that to one, twice, and the mean of what is found.

    Args:
        single: Pre-trained.
        merged: Whether a linear map joins what is found; it begins as the mean.
    """
    assert isinstance(single, ResidualAttention)
    key, norm = single.self.key, single.output.LayerNorm
    width = key.out_features
    pair = PairAttention(width, key.in_features, single.heads, merged, norm.eps, single.dropout)
    pair = pair.to(key.weight.device, key.weight.dtype)
    for part in (pair.self0, pair.self1):
        part.load_state_dict(single.self.state_dict())
    for dense in (pair.output.dense0, pair.output.dense1):
        dense.load_state_dict(single.output.dense.state_dict())
    pair.output.LayerNorm.load_state_dict(norm.state_dict())
    if pair.output.merge_layer is not None:
        half = torch.eye(width, device=key.weight.device, dtype=key.weight.dtype) / 2
        with torch.no_grad():
            pair.output.merge_layer.weight.copy_(torch.cat([half, half], 1))
            pair.output.merge_layer.bias.zero_()
    return pair


def rows_of_pairs(pixels: Tensor) -> Tensor:
    """(B, 2, 3, height, width) -> (2 B, 3, height, width), the left ones first."""
    return pixels.transpose(0, 1).flatten(0, 1)


def twice(stream: TokenStream) -> TokenStream:
    """A text for each of its two pictures."""
    return stacked(stream, stream)


def pair_features(
    model: Backbone, text: TokenStream, images: TokenStream, interventions: Sequence[Intervention] = ()
) -> Tensor:
    """One sentence with each of two pictures apart.

    Args:
        model: The backbone.
        text: 2 B rows, from `begin_fusion`, with the first pictures and then with the second ones.
        images: 2 B rows, from `encode_image`.
        interventions: Methods that act on the fusion layers.

    Returns:
        (B, 2 F): features with the first picture, then with the second, which METER gives a token type of its own.
    """
    if isinstance(model, Meter):
        rows = len(images.x) if images.offsets is None else len(images.offsets) - 1
        numbers = torch.arange(rows, device=images.x.device) // (rows // 2)
        features = model.fuse(text, images, interventions, image_type=1 + numbers).features_BF
    else:
        features = model.fuse(text, images, interventions).features_BF
    return torch.cat(features.chunk(2), -1)


def both_features(
    model: Backbone, text: TokenStream, images: TokenStream, interventions: Sequence[Intervention] = ()
) -> Tensor:
    """One sentence with both pictures at once; trimmers of the text are guided by the mean of the pictures' CLS.

    Args:
        model: After `begin_pairs`.
        text: B rows, from `begin_fusion`.
        images: 2 B rows, from `encode_image`.
        interventions: Methods that act on the fusion layers.

    Returns:
        (B, F).
    """
    return fuse_both(model, text, *halves(images), interventions).features_BF


def fuse_both(
    model: Backbone,
    text: TokenStream,
    first: TokenStream,
    second: TokenStream,
    interventions: Sequence[Intervention] = (),
) -> Fused:
    """Fusion layers of a backbone that reads both pictures; arguments as in `both_features`, pictures apart."""
    guide = TokenStream(((first.cls + second.cls) / 2)[:, None])
    streams = {"text": text, "image": first, "other": second, "pair": guide}
    done = execute(model.fusion_steps, streams, interventions)["text"]
    return Fused(done, done.cls)
