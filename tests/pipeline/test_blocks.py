"""Our blocks against timm's and Hugging Face's, with their weights loaded by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import Asked
from pipeline.models.blocks import PostNormBlock, PreNormBlock
from pipeline.models.schedule import Advance, InBlock, Step, Streams, TokenStream, execute
from pipeline.models.vision import VisionConfig, VisionTower

PLAIN = InBlock()


def test_pre_norm_block_is_timms() -> None:
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    theirs = Block(24, 3, qkv_bias=True).double()
    theirs.norm1.eps = theirs.norm2.eps = 1e-6
    ours = PreNormBlock(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(TokenStream(x), (), PLAIN).x, theirs(x))


def test_vision_tower_is_timms() -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0).double()
    ours = VisionTower(VisionConfig(height=32, width_px=32, patch=8, width=24, depth=3, heads=3)).double()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    stream = ours.embed(pixels)
    for step in ours.steps:
        stream = step.advances[0].block(stream, (), PLAIN)
    torch.testing.assert_close(ours.finish(stream).x, theirs.forward_features(pixels))


@pytest.mark.parametrize("cross", [False, True])
def test_post_norm_block_is_berts(cross: bool) -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=24, num_attention_heads=3, intermediate_size=48, is_decoder=cross, add_cross_attention=cross,
        layer_norm_eps=1e-12, attn_implementation="eager",
    )  # fmt: skip
    theirs = BertLayer(config).double().eval()
    ours = PostNormBlock(24, 3, 48, 24 if cross else None).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    wanted = theirs(x, encoder_hidden_states=y if cross else None)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    # A decoder's own mask would be causal; with none given it attends to all.
    torch.testing.assert_close(ours(TokenStream(x), [TokenStream(y)] if cross else (), PLAIN).x, wanted)


def test_padding_changes_no_real_token() -> None:
    torch.manual_seed(0)
    block = PostNormBlock(24, 3, 48).double()
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()
    padded = block(TokenStream(x, mask), (), PLAIN).x[:, :4]
    torch.testing.assert_close(padded, block(TokenStream(x[:, :4]), (), PLAIN).x)


@dataclass
class Wish:
    """An intervention that wants the same inside every block."""

    inside: InBlock

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        return streams, {"image": self.inside}


def test_a_method_between_attention_and_mlp_sees_the_one_and_feeds_the_other() -> None:
    torch.manual_seed(0)
    block, x = PreNormBlock(24, 3).double(), torch.randn(2, 5, 24, dtype=torch.float64)
    seen: list[Tensor] = []

    def halve(stream: TokenStream, asked: Asked) -> TokenStream:
        seen.append(stream.x)
        assert torch.equal(asked.keys.k, block.attn.qkv(block.norm1(x))[..., 24:48])
        return stream.with_x(stream.x[:, :3])

    out = block(TokenStream(x), (), InBlock(between=halve)).x
    kept = seen[0][:, :3]
    torch.testing.assert_close(out, kept + block.mlp(block.norm2(kept)))
    torch.testing.assert_close(out, block(TokenStream(x), (), PLAIN).x[:, :3])


def test_two_methods_act_in_the_same_block() -> None:
    torch.manual_seed(0)
    block, x = PreNormBlock(24, 3), torch.randn(2, 5, 24)
    heads = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    first: Callable[[TokenStream, Asked], TokenStream] = lambda stream, _: stream.with_x(stream.x[:, :2])  # noqa: E731
    step = Step("vision", 0, (Advance("image", block),))
    both = [Wish(InBlock(self_BH=heads)), Wish(InBlock(between=first))]
    wanted = block(TokenStream(x), (), InBlock(self_BH=heads)).x[:, :2]
    for order in (both, both[::-1]):
        torch.testing.assert_close(execute([step], {"image": TokenStream(x)}, order)["image"].x, wanted)


def test_a_block_without_such_a_place_refuses() -> None:
    with pytest.raises(AssertionError, match="only pre-norm"):
        PostNormBlock(24, 3, 48)(TokenStream(torch.randn(1, 2, 24)), (), InBlock(between=lambda stream, _: stream))
