"""Which rows may serve as another row's negatives: those of this process, or of all of them.

B batch of this process, N rows to choose from, L text tokens, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.models.schedule import TokenStream
from pipeline.objectives.gather import gather_constant, gather_with_gradient
from pipeline.objectives.itc import own_columns


@dataclass(frozen=True)
class Candidates:
    """The N rows, and where this process's own stand among them.

    Attributes:
        everywhere: Whether they are those of all processes.
        own_B: Number of each own row.
        same_BN: True where row and column may not be each other's negatives: the same image, or the same words.
    """

    everywhere: bool
    own_B: Tensor
    same_BN: Tensor

    @classmethod
    def of(cls, batch: ImageTextBatch, everywhere: bool) -> "Candidates":
        """Those of a batch; processes must call this together where `everywhere`."""
        ids_NL, samples_N = batch.token_ids, batch.sample_ids
        own = slice(0, len(batch))
        if everywhere:
            ids_NL, samples_N, own = gather_constant(ids_NL), gather_constant(samples_N), own_columns(len(batch))
        same_words = (batch.token_ids[:, None] == ids_NL[None]).all(-1)
        same_BN = same_words | (batch.sample_ids[:, None] == samples_N[None])
        return cls(everywhere, torch.arange(own.start, own.stop, device=same_BN.device), same_BN)

    @property
    def columns(self) -> slice:
        """Where they stand among the rows of all processes."""
        return slice(None) if self.everywhere else own_columns(len(self.own_B))

    def constant(self, x: Tensor) -> Tensor:
        """The candidates' rows of something that every process has for its own, without gradient."""
        return gather_constant(x) if self.everywhere else x.detach()

    def next_other(self) -> Tensor:
        """(B,) for each row the first candidate behind it, going round, that is not the same."""
        count = self.same_BN.shape[1]
        behind_BN = (self.own_B[:, None] + torch.arange(1, count, device=self.own_B.device)) % count
        # Where all are the same it is the next row.
        first_B = (~self.same_BN.gather(1, behind_BN)).int().argmax(1)
        return behind_BN.gather(1, first_B[:, None])[:, 0]

    def texts(self, text: TokenStream) -> TokenStream:
        """The candidates' texts; their gradient goes back to the process that made them."""
        if not self.everywhere:
            return text
        assert text.present is not None
        return TokenStream(gather_with_gradient(text.x), _gathered(text.present), causal=text.causal)

    def images(self, image: TokenStream) -> TokenStream:
        """The candidates' images; their gradient goes back to the process that made them."""
        if not self.everywhere:
            return image
        size = None if image.size is None else gather_constant(image.size)
        present = None if image.present is None else _gathered(image.present)
        return TokenStream(gather_with_gradient(image.x), present, size=size)

    def shown(self, images: TokenStream, rows: Tensor) -> TokenStream:
        """What texts attend to that are shown these rows of `images`."""
        if not self.everywhere:
            return replace(images, rows=rows)
        # Keys and values are made of the rows that are needed here, not of all processes' images.
        needed, inverse = rows.unique(return_inverse=True)
        size = None if images.size is None else images.size[needed]
        present = None if images.present is None else images.present[needed]
        return TokenStream(images.x[needed], present, rows=inverse, size=size)


def _gathered(present_BN: Tensor) -> Tensor:
    """Of all processes; a mask that trimmers learn has a gradient, padding has none."""
    return gather_with_gradient(present_BN) if present_BN.requires_grad else gather_constant(present_BN)


def both(first: TokenStream, second: TokenStream) -> TokenStream:
    """The rows of two text streams, one after the other."""
    assert first.present is not None and second.present is not None
    return TokenStream(torch.cat([first.x, second.x]), torch.cat([first.present, second.present]))


def picked(stream: TokenStream, rows: Tensor) -> TokenStream:
    """Chosen rows of a text stream."""
    assert stream.present is not None
    # Not x[rows]: the backward of index_select is far faster.
    return TokenStream(stream.x.index_select(0, rows), stream.present[rows], causal=stream.causal)
