"""What layers are given and what their tokens attend to, seen from outside: no forward writes maps out.

B batch, N tokens, D width, H heads.
"""

from collections.abc import Mapping

from torch import Tensor

from pipeline.models.attention import Asked, attention_probabilities
from pipeline.models.blocks import PostNormBlock, PreNormBlock, keys_of
from pipeline.models.schedule import Advance, InBlock, Step, Streams, TokenStream, site


class LayerWatch:
    """An intervention that only looks: what layers are given, and what their tokens attend to in their own stream.

    Args:
        hidden: Sites whose tokens are kept.
        attention: Sites whose maps are computed.
    """

    def __init__(self, hidden: frozenset[str], attention: frozenset[str]) -> None:
        self.wanted = {"hidden": hidden, "attention": attention}
        self.seen: dict[str, Tensor] = {}

    @property
    def looks_at_text(self) -> bool:
        """Whether any of its sites is one of the text alone."""
        return any(name.startswith("text_") for sites in self.wanted.values() for name in sites)

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Look at every stream that advances."""
        for advance in step.advances:
            name, stream = site(step, advance), streams[advance.stream]
            if name in self.wanted["hidden"]:
                self.seen[f"hidden/{name}"] = stream.x
            if name in self.wanted["attention"]:
                self.seen[f"attention/{name}"] = attention_map(advance, stream)
        return streams, {}


def attention_map(advance: Advance, stream: TokenStream) -> Tensor:
    """(B, H, N, N) the self-attention of a block that has not run yet."""
    block = advance.block
    if isinstance(block, PreNormBlock):
        asked = block.attn.ask(stream.with_x(block.norm1(stream.x)))
    else:
        assert isinstance(block, PostNormBlock)
        maps = block.attention.self
        asked = Asked(maps.query(stream.x), keys_of(maps, stream), block.attention.heads)
    return attention_probabilities(asked.q, asked.keys, asked.heads)
