"""What a run evaluates, and the splits that it reads for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.text import Tokenizer
from pipeline.evaluation.source import Source
from pipeline.limits import at_least
from pipeline.measure.latency import LatencyConfig
from pipeline.precision import Precision
from pipeline.setup import Inputs
from pipeline.stage import Stage

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How images and texts of a split are ranked.

    Attributes:
        batch_size: Texts at once; scores do not depend on it.
        rerank: Candidates of each query that matching re-ranks; 0 ranks by features alone.
        captions: Of each image, the first ones; None for all.
    """

    batch_size: int
    rerank: int
    captions: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated.

    Attributes:
        retrieval_splits: Splits on which the pre-trained model ranks images and captions.
        retrieval_pairs: Images taken from each, and from each split of models fine-tuned for retrieval, with their
            captions; None for all. Among fewer images each is found more easily.
        retrieval_captions: ``first`` has one caption of each image, so that these are pairs; ``all`` is the field's
            protocol.
        rerank: Candidates that matching re-ranks; 0 ranks by contrast alone.
        statement_splits: Splits on which fine-tuned models are evaluated: every statement or question of them; of
            ``retrieval`` as the keys above say.
        batch_size: Instances at once; scores do not depend on it.
        precision: Of products, as of `trimline evaluate --precision`; bf16 is autocast. Pictures are drawn in float32.
        pictures: Pictures on which surviving patches are drawn; 0 for none.
        picture_split: Where they are taken from; None for the first statement or retrieval split.
        latency: How milliseconds are taken, where a target is a time.
    """

    retrieval_splits: tuple[str, ...] = ("test",)
    retrieval_pairs: int | None = 512
    retrieval_captions: Literal["first", "all"] = "first"
    rerank: int = 16
    statement_splits: tuple[str, ...] = ("test",)
    batch_size: int = 64
    precision: Precision = "float32"
    pictures: int = 6
    picture_split: str | None = None
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        at_least(self, "evaluate", 1, "batch_size", *(["retrieval_pairs"] if self.retrieval_pairs is not None else []))
        at_least(self, "evaluate", 0, "rerank", "pictures")

    @property
    def ranking(self) -> Ranking:
        """How retrieval is evaluated, of pre-trained and of fine-tuned models alike."""
        captions = 1 if self.retrieval_captions == "first" else None
        return Ranking(batch_size=self.batch_size, rerank=self.rerank, captions=captions)


@dataclass(frozen=True)
class Trained:
    """Exports to evaluate: of pre-training (None where it is not asked), and of each trimming stage by name."""

    pretrained: Path | None
    trimmed: dict[str, Path]


def source_of(inputs: Inputs, split: str, tokenizer: Tokenizer, stage: Stage | None = None) -> Source:
    """A split of a run's data; lists of what cannot be used go into the folder of `stage`."""
    quarantine = None if stage is None else stage.folder / QUARANTINE
    return Source(split=inputs.data / split, loader=inputs.loader, tokenizer=tokenizer, quarantine=quarantine)
