"""What is evaluated, and the loader that all evaluations read a split with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.loader import StepLoader, eval_loader
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.shards import TextKind
from pipeline.data.text import Tokenizer
from pipeline.limits import at_least
from pipeline.measure.latency import LatencyConfig
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.train import Stage

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated.

    Attributes:
        retrieval_splits: Splits on which the pre-trained model ranks images and captions.
        retrieval_pairs: Pairs taken from each.
        rerank: Candidates that matching re-ranks.
        statement_splits: Splits on which fine-tuned models are evaluated: every statement or question of them.
        batch_size: Instances at once; scores do not depend on it.
        pictures: Pictures on which surviving patches are drawn; 0 for none.
        picture_split: Where they are taken from; None for the first statement or retrieval split.
        latency: How milliseconds are taken, where a target is a time.
    """

    retrieval_splits: tuple[str, ...] = ("test",)
    retrieval_pairs: int = 512
    rerank: int = 16
    statement_splits: tuple[str, ...] = ("test",)
    batch_size: int = 64
    pictures: int = 6
    picture_split: str | None = None
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        at_least(self, "evaluate", 1, "retrieval_pairs", "rerank", "batch_size")
        at_least(self, "evaluate", 0, "pictures")


@dataclass(frozen=True)
class Trained:
    """Exports to evaluate: of pre-training (None where it is not asked), and of each trimming stage by name."""

    pretrained: Path | None
    trimmed: dict[str, Path]


def loader_of(
    inputs: Inputs,
    split: str,
    text: TextKind,
    batch_size: int,
    tokenizer: Tokenizer,
    limit: int | None = None,
    stage: Stage | None = None,
    spread: bool = False,
) -> StepLoader:
    """Every text of a split once, or one caption of each picture."""
    return eval_loader(
        inputs.data / split,
        text=text,
        unit="image" if text == "captions" else "pair",
        config=inputs.loader,
        tokenizer=tokenizer,
        batch_size=batch_size,
        process=Process(),
        limit=limit,
        spread=spread,
        quarantine=None if stage is None else stage.folder / QUARANTINE,
    )
