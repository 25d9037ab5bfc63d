"""A captioner from its export folder, with all that it takes to tell of raw pictures.

B pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, normalise
from pipeline.generation import BeamConfig, generate
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.blip_tasks import BlipCaptioner
from pipeline.trimmed_model import Picture, read_picture
from pipeline.weights.folders import load_model

PROMPT = "a picture of"
"""That BLIP's captions begin with (METHODS.md section 4); it is no part of what is given."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(BeamConfig):
    """How captions are searched for.

    Attributes:
        prompt: What each begins with.
    """

    prompt: str = PROMPT


class Captioner:
    """Tells of pictures by beam search.

    Args:
        model: In evaluation mode.
        tokenizer: That the model was trained with.
        config: The search, and what captions begin with.

    Raises:
        UserError: The tokenizer has more words than the model.
    """

    def __init__(self, model: BlipCaptioner, tokenizer: Tokenizer, config: CaptionConfig) -> None:
        words = model.config.text.vocab_size - EXTRA_WORDS
        if tokenizer.vocab_size > words:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} words, the model {words}; give the one it was trained with"
            )
        self.model, self.tokenizer, self.config = model, tokenizer, config
        vision = model.config.vision
        self.transform = TransformConfig(height=vision.height, width=vision.width_px, resize="bicubic")
        self.device = next(model.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        tokenizer: Path | str | None = None,
        config: CaptionConfig | None = None,
        device: str | torch.device = "cpu",
    ) -> "Captioner":
        """Reads an export folder, such as `trimline import` makes of BLIP's captioner.

        Args:
            folder: The export.
            tokenizer: Folder of the tokenizer, where the export has none.
            config: The search; the published one by default.
            device: Where the model goes.

        Raises:
            UserError: The folder holds something else, or there is no tokenizer.
        """
        loaded = load_model(Path(folder))
        if not isinstance(loaded.model, BlipCaptioner):
            raise UserError(f"{folder} holds {loaded.kind}; captions want a blip_caption")
        words = Tokenizer.from_pretrained(folder if tokenizer is None else tokenizer)
        return cls(loaded.model.to(device), words, config or CaptionConfig())

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Picture], batch_size: int = 16) -> list[str]:
        """A caption of each picture, without the prompt.

        Args:
            pictures: Files, or their bytes.
            batch_size: Pictures that are told of together.

        Raises:
            UserError: A picture cannot be read.
        """
        told: list[str] = []
        for begin in range(0, len(pictures), batch_size):
            read = [read_picture(picture, self.transform) for picture in pictures[begin : begin + batch_size]]
            told += self._told(torch.stack(read).to(self.device))
        return told

    def _told(self, pixels_B3HW: Tensor) -> list[str]:
        ids_1L = self._prompt()
        image = self.model.encode_image(normalise(pixels_B3HW, self.transform.mean, self.transform.std))
        found_BM = generate(self.model, ids_1L, image, self.config, self.tokenizer.sep_id)
        return [self.tokenizer.text(ids) for ids in found_BM[:, ids_1L.shape[1] :].tolist()]

    def _prompt(self) -> Tensor:
        """(1, L) the prompt's tokens behind one that the model replaces by [DEC], without an end."""
        ids, mask = self.tokenizer.encode([self.config.prompt], self.model.config.text.max_positions)
        return ids[:, : int(mask.sum()) - 1].to(self.device)
