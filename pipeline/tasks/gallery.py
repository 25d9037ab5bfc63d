"""A split's images and captions, each encoded once: what retrieval ranks.

Images are encoded by the rank that read them, which keeps their tokens: those never travel. Texts are dealt to ranks in
batches, and every rank gets all of them.

I images, T texts, B of a batch, N image tokens, L text tokens, D width, E embedding width, Q queries.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.gathering import assemble, dealt, places_of
from pipeline.metrics.ranks import Right
from pipeline.models.backbone import Backbone
from pipeline.models.packing import unpack
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.process import Process
from pipeline.together import together

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Texts -> (T, L) ids and mask."""
Methods = Callable[[], list[Intervention]]
"""What acts on the layers, for each batch of images, texts or pairs anew."""


class Asked(NamedTuple):
    """An image of the split: its number in the data, its key, what it is resampled with, and its captions."""

    sample: int
    key: str
    cluster: str
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A split, encoded: the same on every rank but for `tokens`.

    Attributes:
        images: In the order of the data.
        owner_T: The number of each text's image.
        mask_TL: True at real tokens.
        image_IE: Features of unit length; without columns where the model has none.
        text_TE: Likewise.
        text: Text tokens as fusion begins with them; None where nothing is matched.
        tokens: By number, the tokens of the images that this rank has read; none where nothing is matched.
    """

    images: list[Asked]
    owner_T: Tensor
    mask_TL: Tensor
    image_IE: Tensor
    text_TE: Tensor
    text: TokenStream | None
    tokens: dict[int, TokenStream]

    @property
    def asking(self) -> Tensor:
        """(Q,) numbers of the images that have texts; the others are candidates only."""
        numbers = [number for number, image in enumerate(self.images) if image.captions]
        return torch.tensor(numbers, dtype=torch.int64, device=self.owner_T.device)

    def texts_right_for(self, images_Q: Tensor) -> Tensor:
        """(Q, T) which texts are these images'."""
        return images_Q[:, None] == self.owner_T

    def texts_of(self, images_Q: Tensor) -> Right:
        """The same as pairs; the texts of an image lie side by side."""
        begin_Q, end_Q = (torch.searchsorted(self.owner_T, images_Q, right=right) for right in (False, True))
        count_Q = end_Q - begin_Q
        row_P = torch.arange(len(images_Q), device=images_Q.device).repeat_interleave(count_Q)
        first_P = (count_Q.cumsum(0) - count_Q)[row_P]  # the first pair of the same image
        return Right(row_P, begin_Q[row_P] + torch.arange(len(row_P), device=row_P.device) - first_P)

    def image_of(self, texts_Q: Tensor) -> Right:
        """Which image is these texts', as pairs."""
        return Right(torch.arange(len(texts_Q), device=texts_Q.device), self.owner_T[texts_Q])


@torch.no_grad()
def encode_split(
    model: Backbone,
    batches: Iterable[ImageTextBatch],
    normalise: Callable[[Tensor], Tensor],
    tokenize: Tokenize,
    batch_size: int,
    process: Process,
    captions: int | None = None,
    matching: bool = True,
    methods: Methods = list,
) -> Gallery:
    """Encode without any text looking at an image: as a search engine would, unpruned.

    Args:
        model: In evaluation mode.
        batches: Every image of the split once, this rank's.
        normalise: Maps uint8 pixels to the model's input.
        tokenize: Of the captions.
        batch_size: Texts at once.
        process: This rank.
        captions: Only so many of each image, the first ones; None for all.
        matching: Whether pairs are to be matched: only then are tokens kept, and of a model that has fusion.
        methods: What trims images and texts; none for the full model.

    Raises:
        UserError: There is no caption, or a feature is not finite.
    """
    matching = matching and bool(model.fusion_steps)
    mine = _Mine(matching)
    # A rank that cannot read its part must not let the others wait for it.
    parts = together(process, lambda: _read(model, batches, normalise, captions, process, mine, methods), "the split")
    images = sorted(image for part in parts for image in part)
    if not any(image.captions for image in images):
        raise UserError(f"none of {len(images)} images has a caption, so nothing can be found; choose data that has")
    number_of = {image.sample: number for number, image in enumerate(images)}
    own = [number_of[image.sample] for image in parts[process.rank]]
    places = torch.tensor(own, dtype=torch.int64, device=process.torch_device)
    owner_T = torch.tensor([number for number, image in enumerate(images) for _ in image.captions]).to(places)
    image_IE = mine.features_everywhere(model, places, len(images), process)
    check_finite(image_IE.isfinite().all(1), lambda at: images[at].key, "image features")
    said = [each for image in images for each in image.captions]
    texts = _encode_texts(model, said, tokenize, batch_size, process, matching, methods)
    check_finite(texts.text_TE.isfinite().all(1), lambda at: images[int(owner_T[at])].key, "text features")
    tokens = dict(zip(own, mine.streams, strict=True)) if matching else {}
    return Gallery(images=images, owner_T=owner_T, image_IE=image_IE, tokens=tokens, **texts._asdict())


@dataclass(frozen=True)
class _Mine:
    """What a rank keeps of its images: tokens of each where they are matched, features of each batch."""

    matching: bool
    streams: list[TokenStream] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def add(self, model: Backbone, image: TokenStream) -> None:
        """Takes what the model needs of a batch of images."""
        if model.has_contrast:
            self.features.append(model.image_feature(image))
        if self.matching:
            self.streams.extend(_each(image))

    def features_everywhere(self, model: Backbone, places: Tensor, count: int, process: Process) -> Tensor:
        """(I, E) on every rank; without columns where the model has no features."""
        none = torch.empty(0, model.config.embed, dtype=score_type(model), device=places.device)
        if not model.has_contrast:
            return none.new_empty(count, 0)
        return assemble(process, torch.cat([none, *self.features]), places, count)


@torch.no_grad()
def _read(
    model: Backbone,
    batches: Iterable[ImageTextBatch],
    normalise: Callable[[Tensor], Tensor],
    captions: int | None,
    process: Process,
    mine: _Mine,
    methods: Methods,
) -> list[Asked]:
    """Encodes this rank's images into `mine`, and says which they are."""
    found: list[Asked] = []
    for batch in batches:
        if not len(batch):  # an uneven tail leaves some ranks without
            continue
        mine.add(model, model.encode_image(normalise(batch.pixels.to(process.torch_device)), methods()))
        rows = zip(batch.sample_ids.tolist(), batch.keys, batch.clusters, batch.captions, strict=True)
        found += [Asked(sample, key, cluster, tuple(said[:captions])) for sample, key, cluster, said in rows]
    return found


def _each(image: TokenStream) -> list[TokenStream]:
    """The images of a batch, each for itself."""
    if image.offsets is not None:
        return [TokenStream(image.x[a:b], offsets=(0, b - a)) for a, b in itertools.pairwise(image.offsets)]
    present = image.present
    return [
        TokenStream(image.x[row : row + 1], None if present is None else present[row : row + 1])
        for row in range(len(image.x))
    ]


class _Texts(NamedTuple):
    """Of `Gallery`."""

    mask_TL: Tensor
    text_TE: Tensor
    text: TokenStream | None


def _encode_texts(
    model: Backbone,
    said: list[str],
    tokenize: Tokenize,
    batch_size: int,
    process: Process,
    matching: bool,
    methods: Methods,
) -> _Texts:
    """All texts on every rank, each batch encoded by one."""
    device = process.torch_device
    encoded = partial(_encoded, model, matching, methods)
    parts = [encoded(*_on(device, tokenize(said[block]))) for block in dealt(len(said), batch_size, process)]
    if not parts:  # fewer batches than ranks: something of the right shape, of which no row is taken
        parts = [tuple(part[:0] for part in encoded(*_on(device, tokenize(said[:1]))))]
    places = places_of(dealt(len(said), batch_size, process), device)
    whole = [torch.cat(same) for same in zip(*parts, strict=True)]
    mask_TL = assemble(process, whole[0], places, len(said))
    none = torch.empty(len(said), 0, device=device)
    text_TE = assemble(process, whole[1], places, len(said)) if model.has_contrast else none
    if not matching:
        return _Texts(mask_TL, text_TE, None)
    tokens, present = (assemble(process, part, places, len(said)) for part in whole[2:])
    return _Texts(mask_TL, text_TE, TokenStream(tokens, present))


def _on(device: torch.device, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return made[0].to(device), made[1].to(device)


def _encoded(model: Backbone, matching: bool, methods: Methods, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
    """Mask, features, the tokens that fusion begins with and which are there; empty for what is not there or wanted."""
    text = model.encode_text(ids_BL, mask_BL, methods())
    none = text.x.new_empty(len(ids_BL), 0)
    feature_BE = model.text_feature(text) if model.has_contrast else none
    if not matching:
        return mask_BL, feature_BE, none, none
    begun = unpack(model.begin_fusion(text, ids_BL, mask_BL))
    assert begun.present is not None
    left = ids_BL.shape[1] - begun.x.shape[1]  # what the longest text of the batch has lost
    return mask_BL, feature_BE, F.pad(begun.x, (0, 0, 0, left)), F.pad(begun.present, (0, left))


def score_type(model: Backbone) -> torch.dtype:
    """Of features and scores, whatever the weights are."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def check_finite(sound_N: Tensor, named: Callable[[int], str], what: str) -> None:
    """Refuses NaN, with which no comparison holds: nothing would stand before a right answer that has it.

    Args:
        sound_N: Which are finite; the same on every rank.
        named: The name of each.
        what: They are.

    Raises:
        UserError: One is not.
    """
    if bool(sound_N.all()):
        return
    bad = (~sound_N).nonzero()[:, 0]
    raise UserError(
        f"{len(bad)} of {len(sound_N)} {what} are not finite numbers, the first that of {named(int(bad[0]))}: "
        "nothing can be ranked by them; the weights are damaged, or overflow in this precision"
    )
