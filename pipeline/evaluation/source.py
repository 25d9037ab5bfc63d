"""How pictures and texts become a model's input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from pipeline.data.loader import LoaderConfig, StepLoader, eval_loader
from pipeline.data.sample import EveryImage, TextKind
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import normalise
from pipeline.process import Process


@dataclass(frozen=True, kw_only=True)
class Source:
    """A split and what its samples go through.

    Attributes:
        split: Folder of indexed shards, or its URL.
        loader: Image size, text length, how shards are read.
        tokenizer: Of the model.
        quarantine: Folder for lists of samples that cannot be used; None for none.
    """

    split: str | Path
    loader: LoaderConfig
    tokenizer: Tokenizer
    quarantine: Path | None = None

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """uint8 pixels -> the model's input."""
        return partial(normalise, mean=self.loader.mean, std=self.loader.std)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L) ids and mask."""
        return self.tokenizer.encode(texts, self.loader.max_tokens)

    def batches(
        self, text: TextKind, batch_size: int, process: Process, limit: int | None = None, spread: bool = False
    ) -> StepLoader:
        """This rank's part of the split, in order: every image once, or every statement or question."""
        return eval_loader(
            self.split,
            text=text,
            unit="image" if text == "captions" or isinstance(text, EveryImage) else "pair",
            config=self.loader,
            tokenizer=self.tokenizer,
            batch_size=batch_size,
            process=process,
            limit=limit,
            spread=spread,
            quarantine=self.quarantine,
        )
