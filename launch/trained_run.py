"""A run folder whose pre-trained model is looked into, and the split that it is looked at with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.index import INDEX, indexed_splits
from launch.config import RunConfig
from launch.exposure import Exposure, exposure_of
from launch.given import Given
from launch.reading import read_config
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.evaluation.config import source_of
from pipeline.exports import load_backbone
from pipeline.models.backbone import Backbone
from pipeline.process import Process
from pipeline.setup import Inputs


def config_of(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        UserError: It is none.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml; give the `out` of a `trimline run`")
    return read_config(RunConfig, [folder / "config.yaml"], [])


def _pretrained(folder: Path, config: RunConfig) -> Path:
    """Where the model that was pre-trained, or given instead, lies."""
    return folder / "stages" / "pretrain" / "export" if config.pretrained is None else Path(config.pretrained)


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and the split that its model is looked at with."""

    folder: Path
    config: RunConfig
    split: str

    @classmethod
    def of(cls, folder: Path, split: str | None) -> "TrainedRun":
        """Reads a run folder.

        Args:
            folder: Of a run that got as far as pre-training.
            split: Name of a split of its own, or a folder of indexed shards; None for the first that it evaluates.

        Raises:
            UserError: It holds no pre-trained model, or no such split.
        """
        config = config_of(folder)
        if config.pretrained is not None:
            Given.of(Path(config.pretrained))
        elif not _pretrained(folder, config).is_dir():
            raise UserError(
                f"{folder} has no pre-trained model yet; let its pre-training end (trimline status {folder})"
            )
        chosen = split or next(iter(config.evaluate.retrieval_splits or config.evaluate.statement_splits), "val")
        data = folder / "data"
        if (data / chosen / INDEX).is_file():
            return cls(folder, config, chosen)
        if (Path(chosen) / INDEX).is_file():
            return cls(folder, config, str(Path(chosen).resolve()))
        known = ", ".join(path.relative_to(data).as_posix() for path in indexed_splits(data)) or "none"
        raise UserError(f"{folder} has no split {chosen!r}, nor is that a folder of indexed shards; it has {known}")

    @property
    def split_folder(self) -> Path:
        """Where the split lies."""
        own = self.folder / "data" / self.split
        return own if (own / INDEX).is_file() else Path(self.split)

    @property
    def exposure(self) -> Exposure:
        """Whether pre-training has seen the split."""
        return self.exposure_to(self.split_folder)

    def exposure_to(self, split: Path, fine_tuned: bool = False) -> Exposure:
        """Whether the run has trained on a split.

        Args:
            split: A folder of indexed shards.
            fine_tuned: Whether fine-tuning counts too.
        """
        trim = self.config.trim
        splits = [*self.config.pretrain_splits, *(trim.splits if fine_tuned else ())]
        found = exposure_of(self.folder, self.config, split, splits)
        scored = (self.folder / "data" / trim.validation.split).resolve()
        return replace(found, chose=fine_tuned and trim.validation.every_steps > 0 and split.resolve() == scored)

    @cached_property
    def inputs(self) -> Inputs:
        """Data, tokenizer and loader of the run."""
        config = self.config
        return Inputs(
            data=self.folder / "data",
            tokenizer=self.folder / "tokenizer",
            loader=config.loader,
            engine=config.engine,
            seed=config.seed,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's."""
        return self.inputs.load_tokenizer()

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """uint8 pixels -> the model's input."""
        return self.inputs.normalise

    @property
    def began(self) -> Mapping[str, Path]:
        """The weights that pre-training began from, by part; empty where they were drawn."""
        return {} if self.config.pretrain.init is None else self.config.pretrain.init.paths

    @cached_property
    def device(self) -> str:
        """A GPU if there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def model(self) -> Backbone:
        """The pre-trained model, in evaluation mode."""
        return load_backbone(_pretrained(self.folder, self.config)).to(self.device)

    def batches(self, samples: int, size: int) -> Iterator[ImageTextBatch]:
        """The first pairs of the split, `size` at a time, on the device."""
        source = source_of(self.inputs, self.split, self.tokenizer)
        for batch in source.batches("captions", size, Process(), samples):
            yield batch.to(self.device)
