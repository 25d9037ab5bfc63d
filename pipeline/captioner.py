"""A captioner from its export folder, with all that it takes to tell of raw pictures.

B pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, normalise
from pipeline.exports import caption_config, captions_of, load_classification_model
from pipeline.generation import CaptionConfig, check_beams, prompt_ids
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.blip_tasks import BlipCaptioner
from pipeline.setup import check_room
from pipeline.tasks.captioning import CaptioningModel, Told
from pipeline.trimmed_model import Picture, prepared_input, read_picture
from pipeline.weights.folders import load_model
from pipeline.weights.usual_texts import tokenizer_for

KINDS = ("captioning", "blip_caption")
"""Of exports that tell of pictures: of a trimming stage, and of `trimline import`."""


def is_captioner(folder: Path) -> bool:
    """Whether an export folder holds a captioner."""
    return _kind(folder) in KINDS


def _kind(folder: Path) -> Any:
    described = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    return described.get("kind") if isinstance(described, dict) else None


class Captioner:
    """Tells of pictures by beam search.

    Args:
        model: In evaluation mode.
        tokenizer: That the model was trained with.
        config: The search, and what captions begin with.
        transform: Size and channels of its input; None for those of the published captioners.

    Raises:
        UserError: The tokenizer has more words than the model, or the search goes on longer than its texts.
    """

    def __init__(
        self,
        model: CaptioningModel | BlipCaptioner,
        tokenizer: Tokenizer,
        config: CaptionConfig,
        transform: TransformConfig | None = None,
    ) -> None:
        sizes = (model.backbone if isinstance(model, CaptioningModel) else model).config
        words = sizes.text.vocab_size - EXTRA_WORDS
        if tokenizer.vocab_size > words:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} words, the model {words}; give the one it was trained with"
            )
        check_room(sizes.text, config.max_length, "max_length")
        check_beams(config, sizes.text.vocab_size)
        self.tokenizer, self.config = tokenizer, config
        self.device = next(model.parameters()).device
        self.prompt_1L = prompt_ids(tokenizer, config.prompt).to(self.device)
        classes = captions_of(config, self.prompt_1L.shape[1])
        if isinstance(model, BlipCaptioner):
            model = CaptioningModel(model, None, classes=classes).eval()
        model.classes = classes  # costs are those of this search
        self.model = model
        plain = TransformConfig(height=sizes.vision.height, width=sizes.vision.width_px, resize="bicubic")
        self.transform = transform or plain

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        tokenizer: Path | str | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
        device: str | torch.device = "cpu",
    ) -> "Captioner":
        """Reads an export folder: of a trimming stage, trimmed or full, or what `trimline import` makes of BLIP's.

        Args:
            folder: The export.
            tokenizer: Folder of the tokenizer, where the export has none.
            changes: What is searched for otherwise than the export says, or than is published (`CaptionConfig`).
            device: Where the model goes.

        Raises:
            UserError: The folder holds something else, or there is no tokenizer.
        """
        folder = Path(folder)
        given = None if tokenizer is None else Path(tokenizer)
        words = tokenizer_for(folder, given, "blip", _kind(folder))  # whose captioners all are
        if _kind(folder) == "captioning":
            trained, described = load_classification_model(folder)
            assert isinstance(trained, CaptioningModel)
            transform, _ = prepared_input(folder, described)
            return cls(trained.to(device), words, replace(caption_config(described), **changes), transform)
        loaded = load_model(folder)
        if not isinstance(loaded.model, BlipCaptioner):
            raise UserError(f"{folder} holds {loaded.kind}; captions want one of {', '.join(KINDS)}")
        return cls(loaded.model.to(device), words, CaptionConfig(**changes))

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
            pixels_B3HW = normalise(torch.stack(read).to(self.device), self.transform.mean, self.transform.std)
            told += self.words(self.tell(pixels_B3HW))
        return told

    def tell(self, pixels_B3HW: Tensor) -> Told:
        """The best text of each normalised picture."""
        return self.model.tell(pixels_B3HW, self.prompt_1L, self.config, self.tokenizer.sep_id)

    def words(self, told: Told) -> list[str]:
        """Texts without the prompt."""
        return [self.tokenizer.text(ids) for ids in told.ids_BM[:, self.prompt_1L.shape[1] :].tolist()]
