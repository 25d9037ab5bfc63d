"""A fine-tuned model from its export folder, with all that it takes to judge raw pictures and texts.

B batch, A classes or answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.decode import BadSample
from pipeline.data.sample import ASKED, pictures_of
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, eval_image, normalise
from pipeline.exports import load_classification_model
from pipeline.tasks.classes import JUDGING
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import units_of

Picture = str | Path | bytes
"""A file's path, or the bytes of one."""

_OF_TRANSFORM = ("height", "width", "resize", "mean", "std")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture and one text.

    Attributes:
        answer: ``true`` or ``false`` of a statement (NLVR2's too), ``entailment``, ``neutral`` or ``contradiction``, or
            the answer to a question.
        probability: Of the answer; of a statement, of true.
        gmacs: Billions of multiply-accumulates that this instance took.
        full_gmacs: That the untrimmed model takes.
        kept: Shares of what was kept, mean over layers: ``vision`` and ``text`` tokens, and where its method trims
            heads those of self- (``msa``) and cross-attention (``mca``). Empty for the untrimmed model.
        cut: Whether the text was longer than the model reads, so that its end did not count.
        unknown: Words of the text that the tokenizer has no tokens for, so that they are all the same to the model.
    """

    answer: str
    probability: float
    gmacs: float
    full_gmacs: float
    kept: dict[str, float]
    cut: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def true(self) -> bool:
        """Whether a statement is taken for true of the picture."""
        return self.answer == "true"


def read_picture(picture: Picture, transform: TransformConfig) -> Tensor:
    """(3, H, W) uint8 of a model's size.

    Raises:
        UserError: It cannot be read.
    """
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).expanduser().read_bytes()
        return torch.from_numpy(eval_image(data, transform).copy()).permute(2, 0, 1)
    except (OSError, BadSample) as error:
        name = f"{len(picture)} bytes" if isinstance(picture, bytes) else str(picture)
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{name}: {said}; give a picture file such as a JPEG or PNG") from error


class TrimmedModel:
    """Judges statements about pictures, or answers questions, each instance with as many tokens and heads as it needs.

    Args:
        model: In evaluation mode.
        tokenizer: That the model was trained with.
        transform: Size and channels of its input.
        max_tokens: Longer texts are cut.

    Example:
        >>> model = TrimmedModel.from_pretrained("runs/demo/stages/trim-statement-2.0x/export")  # doctest: +SKIP
        >>> model.predict(["test-00000000.jpg"], ["there is a red circle"])[0].true  # doctest: +SKIP
        True
    """

    def __init__(
        self, model: ClassificationModel, tokenizer: Tokenizer, transform: TransformConfig, max_tokens: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer.of_questions() if model.classes.text in ASKED else tokenizer
        self.transform = transform
        self.max_tokens = max_tokens
        self.device = next(model.parameters()).device

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str | torch.device = "cpu") -> "TrimmedModel":
        """Reads the export folder of a trimming stage, trimmed or full.

        Raises:
            UserError: The folder holds something else, such as a captioner, or no tokenizer.
        """
        folder = Path(folder)
        model, described = load_classification_model(folder)
        if model.classes.task == "captioning":
            raise UserError(
                f"{folder} holds a captioner, which judges no texts; load it with pipeline.captioner.Captioner"
            )
        tokenizer = Tokenizer.from_pretrained(folder)
        transform, max_tokens = prepared_input(folder, described)
        return cls(model.to(device), tokenizer, transform, max_tokens)

    @torch.inference_mode()
    def predict(self, pictures: Sequence[Picture], texts: Sequence[str], batch_size: int = 32) -> list[Prediction]:
        """Judges text i of picture i; one picture serves for any number of texts.

        Args:
            pictures: As many as texts, or one; where the model judges pairs, two for each of these, left and right.
            texts: Statements or questions.
            batch_size: Instances that are computed together.

        Raises:
            UserError: The numbers differ, a picture cannot be read, or a text has nothing that the model reads.
        """
        if blank := [text for text in texts if not self.tokenizer.reads(text)]:
            raise UserError(f"the text {blank[0]!r} has no word that the model reads; give a statement or a question")
        each = self.pictures
        if len(pictures) not in (each, each * len(texts)):
            wanted = (
                "one picture for each text, or one" if each == 1 else "a left and a right one for each text, or two"
            )
            raise UserError(f"{len(pictures)} pictures and {len(texts)} texts: give {wanted}")
        one = self._read(pictures) if len(pictures) == each else None
        found: list[Prediction] = []
        for begin in range(0, len(texts), batch_size):
            end = min(begin + batch_size, len(texts))
            rows = (pictures[each * row : each * (row + 1)] for row in range(begin, end))
            own = [self._read(row) if one is None else one for row in rows]
            found += self._judged(torch.stack(own), texts[begin:end])
        return found

    @property
    def pictures(self) -> int:
        """How many pictures a text is told of."""
        return pictures_of(self.model.classes.text)

    def _read(self, pictures: Sequence[Picture]) -> Tensor:
        """(3, H, W), or (2, 3, H, W) of a pair."""
        pixels = torch.stack([read_picture(picture, self.transform) for picture in pictures])
        return pixels if self.pictures > 1 else pixels[0]

    def _judged(self, pixels: Tensor, texts: Sequence[str]) -> Iterator[Prediction]:
        ids_BL, mask_BL = (part.to(self.device) for part in self.tokenizer.encode(texts, self.max_tokens))
        length = int(mask_BL.sum(1).max())
        ids_BL, mask_BL = ids_BL[:, :length], mask_BL[:, :length]
        pixels = normalise(pixels.to(self.device), self.transform.mean, self.transform.std)
        trimming = self.model.trimming(ids_BL, mask_BL)
        scores_BA = self.model.classify(pixels, ids_BL, mask_BL, [] if trimming is None else [trimming])
        units = units_of(self.model.backbone, mask_BL)
        decisions = {} if trimming is None else trimming.decisions
        full_B, macs_B = self.model.full_macs(units), self.model.macs(decisions, units)
        kept = self.model.cost_model().kept_by_instance(decisions, units)
        classes = self.model.classes
        said_B, chance_BA = scores_BA.argmax(1), classes.probabilities(scores_BA)
        told_B = torch.ones_like(said_B) if classes in JUDGING else said_B
        for row, said in enumerate(said_B.tolist()):
            shares, chance = (
                {group: float(share_B[row]) for group, share_B in kept.items()},
                chance_BA[row, told_B[row]],
            )
            costs = float(macs_B[row]) / 1e9, float(full_B[row]) / 1e9
            cut = self.tokenizer.cuts(texts[row], self.max_tokens)
            unknown = tuple(self.tokenizer.unknown_words(texts[row]))
            yield Prediction(classes.names[said], float(chance), *costs, shares, cut, unknown)


def prepared_input(folder: Path, described: dict[str, Any]) -> tuple[TransformConfig, int]:
    """How the input of an export's model was made, and how long its texts may be.

    Raises:
        UserError: Its config.json does not say.
    """
    try:
        loader = described["loader"]
        crop = loader.get("crop", "none")  # older ones do not say
        transform = TransformConfig(**{name: loader[name] for name in _OF_TRANSFORM}, crop=crop)
        return transform, int(loader["max_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its config.json does not tell its input ({error}); export it again") from error
