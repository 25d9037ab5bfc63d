"""The layer schedule: which stream advances through which block, what it attends to, where a method may act.

A backbone is a list of `Step`s. `execute` walks them; every method (ELIP, EViT, ToMe, FLIP, momentum replay, SmartTrim
masked or packed, analyses) is an `Intervention` that sees the streams before a step and may leave word for the inside
of its blocks. There is no other forward.

B batch, N tokens, T packed tokens of all instances, D width, H heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from pipeline.models.attention import Asked
from pipeline.models.past import Past

CLS = -1  # origin of the class token; -2, -3, ... are merged tokens in the order they were made


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one modality on their way through the layers; the first of each instance is its CLS.

    Attributes:
        x: (B, N, D), or packed (T, D).
        present: (B, N), 1 or True where a token is there (neither padding nor trimmed); None where all are.
        origin: (B, N) or (T,) number of the patch or word a token began as, `CLS`, or below for merged ones.
        offsets: B + 1 starts of the instances in a packed `x`; None where it is not packed.
        rows: (B',) as something attended to: the row of `x` that belongs to each query row. It lets several
            texts share one image's keys and values. None where row b belongs to query row b.
        memo: Keys and values that have been made of `x`, by the projections that made them, for a stream that several
            passes attend to through the same projections; None where nothing is remembered.
        causal: Whether each token attends only to those before it and to itself.
        size: (B, N) how many tokens each one stands for since ToMe merged them; whatever attends to it gives it the
            weight of that many. None where each stands for itself.
        past: What a causal stream keeps of the tokens before these; None where these are all.
        queries: As something attended to: how many query rows in turn share each row of `x`, as beams share an image.
    """

    x: Tensor
    present: Tensor | None = None
    origin: Tensor | None = None
    offsets: tuple[int, ...] | None = None
    rows: Tensor | None = None
    causal: bool = False
    size: Tensor | None = None
    memo: dict[int, tuple[Tensor, Tensor]] | None = None
    past: Past | None = None
    queries: int = 1

    @property
    def cls(self) -> Tensor:
        """(B, D) the class token of each instance."""
        if self.offsets is None:
            return self.x[:, 0]
        return self.x[:1] if len(self.offsets) == 2 else self.x[list(self.offsets[:-1])]

    def with_x(self, x: Tensor) -> "TokenStream":
        """The same tokens with new features."""
        return replace(self, x=x, memo=None)


Between = Callable[[TokenStream, Asked], TokenStream]
"""Maps the stream after a block's self-attention, and what that attention was asked, to what its MLP gets."""


@dataclass(frozen=True)
class InBlock:
    """What methods want inside one block; None changes nothing.

    Attributes:
        self_BH: (B, H) which heads of the self-attention work, 1 or 0 each; a row for each row of queries.
        cross_BH: Likewise of the cross-attention.
        between: What happens between attention and MLP; only pre-norm blocks have such a place.
    """

    self_BH: Tensor | None = None
    cross_BH: Tensor | None = None
    between: Between | None = None

    def joined(self, other: "InBlock") -> "InBlock":
        """Both methods' wishes; of two for the same thing the later one's."""
        return InBlock(
            self.self_BH if other.self_BH is None else other.self_BH,
            self.cross_BH if other.cross_BH is None else other.cross_BH,
            self.between if other.between is None else other.between,
        )


Streams = Mapping[str, TokenStream]
NO_STREAMS: Streams = {}
Block = Callable[[TokenStream, Sequence[TokenStream], InBlock], TokenStream]


@dataclass(frozen=True, eq=False)
class Advance:
    """One stream goes through one block.

    Attributes:
        stream: Name of the stream that advances.
        block: A module that maps (stream, sources, wishes of methods) to the stream.
        sources: Names of the streams it cross-attends to: none, one, or two for a pair of images.
        guide: Name of the stream whose CLS speaks for the other modality; its own name where there is none.
        part: Part of the backbone that the block is of, where its step has several; else the step's.
        tells_of: Name of the source whose tokens methods may take out here, where every token of the stream itself is
            an output, as a decoder's are; empty where the stream's own may go.
    """

    stream: str
    block: Block
    sources: tuple[str, ...] = ()
    guide: str = ""
    part: str = ""
    tells_of: str = ""

    @property
    def trimmed(self) -> str:
        """Name of the stream whose tokens methods may take out here."""
        return self.tells_of or self.stream


@dataclass(frozen=True, eq=False)
class Step:
    """Streams that advance together, all from the values before the step.

    Attributes:
        part: Part of the backbone, such as ``vision``, ``text`` or ``fusion``.
        layer: Number of the layer inside its part, from 0.
        advances: What happens.
    """

    part: str
    layer: int
    advances: tuple[Advance, ...]


def site(step: Step, advance: Advance) -> str:
    """Where a method acts: one stream at one step; without dots, so that it can name a module."""
    return f"{advance.part or step.part}_{step.layer}_{advance.stream}"


def side_by_side(text: Sequence[Step], image: Sequence[Step]) -> list[Step]:
    """Both encoders layer by layer, guided by the other's CLS as it enters the layer; the longer one ends alone."""
    parts = [(text, "image"), (image, "text")]
    return [
        Step(
            "encoders",
            layer,
            tuple(
                replace(advance, guide=guide, part=steps[layer].part)
                for steps, guide in parts
                for advance in (steps[layer].advances if layer < len(steps) else ())
            ),
        )
        for layer in range(max(len(text), len(image)))
    ]


PLAIN = InBlock()


class Intervention(Protocol):
    """A method: it may change the streams before a step and act inside its blocks, or only look."""

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Return the streams that the step shall see, and by stream name what shall happen inside its block."""
        ...


def execute(steps: Sequence[Step], streams: Streams, interventions: Sequence[Intervention] = ()) -> Streams:
    """Walk the steps.

    Args:
        steps: Part of a backbone's schedule, in order.
        streams: The streams by name; those that no step advances stay as they are.
        interventions: Methods, asked in order before each step.

    Returns:
        The streams after the last step.
    """
    for step in steps:
        inside: dict[str, InBlock] = {}
        for intervention in interventions:
            streams, wishes = intervention.before(step, streams)
            inside |= {name: inside.get(name, PLAIN).joined(wish) for name, wish in wishes.items()}
        streams = {**streams, **{a.stream: _advance(a, streams, inside) for a in step.advances}}
    return streams


def _advance(advance: Advance, streams: Streams, inside: Mapping[str, InBlock]) -> TokenStream:
    sources = [streams[name] for name in advance.sources]
    return advance.block(streams[advance.stream], sources, inside.get(advance.stream, PLAIN))
