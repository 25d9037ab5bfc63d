"""An export folder by itself, such as an imported model, and the split that it is looked at with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from data_prep.files import read_described
from data_prep.index import INDEX
from launch.config import RunConfig
from launch.exposure import Exposure
from launch.reading import read_config
from launch.tasks import tasks_of
from launch.trained_run import TrainedRun
from pipeline.data.batch import ImageTextBatch
from pipeline.evaluation.opened import open_export
from pipeline.evaluation.source import Source
from pipeline.models.backbone import Backbone
from pipeline.process import Process
from pipeline.tasks.classes import TEXTS, TaskName
from pipeline.tasks.classification import ClassificationModel

_LOOKED_INTO = ("backbone", "blip_retrieval", *(kind for kind in TEXTS if kind not in ("captioning", "nlvr2")))
"""Kinds of models that read one picture with one text."""


class Trained(Protocol):
    """A trained model and a split: of a run, or an export folder."""

    @property
    def folder(self) -> Path:
        """What was given."""

    @property
    def split(self) -> str:
        """Its name in the run, or its folder."""

    @property
    def split_folder(self) -> Path:
        """Where the split lies."""

    @property
    def exposure(self) -> Exposure:
        """Whether the model was trained on the split, as far as is known."""

    @property
    def device(self) -> str:
        """A GPU if there is one."""

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """uint8 pixels -> the model's input."""

    @property
    def began(self) -> Mapping[str, Path]:
        """The weights that its training began from, by part; empty where they were drawn or nobody says."""

    def model(self) -> Backbone:
        """The model, in evaluation mode."""

    def batches(self, samples: int, size: int) -> Iterator[ImageTextBatch]:
        """The first pairs of the split, on the device."""


@dataclass(frozen=True)
class TrainedExport:
    """An export folder and a split."""

    folder: Path
    split: str

    @classmethod
    def of(cls, folder: Path, split: str | None) -> "TrainedExport":
        """Checks what is given.

        Raises:
            UserError: No split is named, or it is no folder of indexed shards.
        """
        if split is None or not (Path(split) / INDEX).is_file():
            given = "none is given" if split is None else f"{split} is none"
            raise UserError(
                f"{folder} is a model without data: name a folder of indexed shards with --split; {given} (or give the "
                "run that it is of)"
            )
        return cls(folder, str(Path(split).resolve()))

    @property
    def split_folder(self) -> Path:
        """As given."""
        return Path(self.split)

    @property
    def exposure(self) -> Exposure:
        """What the run says that the export lies in, of fine-tuning too; an export by itself does not."""
        stage = self.folder.absolute().parent
        run = stage.parent.parent
        if stage.parent.name != "stages" or not (run / "config.yaml").is_file():
            why = "an export by itself does not say what it was trained on"
            return Exposure(model=str(self.folder), held_out=None, why=why)
        try:
            config = read_config(RunConfig, [run / "config.yaml"], [])
        except UserError:  # of another version, say; the export needs none
            return Exposure(model=str(self.folder), held_out=None, why="the config.yaml of its run cannot be read")
        tasks = [task for task in tasks_of(config) if stage.name.startswith(f"trim-{task.title}-")]
        own = max(tasks, key=lambda each: len(each.title)).config if tasks else config
        found = TrainedRun(run, own, self.split).exposure_to(self.split_folder, fine_tuned=bool(tasks))
        return replace(found, model=str(self.folder))

    @property
    def began(self) -> Mapping[str, Path]:
        """An export does not say."""
        return {}

    @cached_property
    def device(self) -> str:
        """A GPU if there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def kind(self) -> str:
        """What it is a model for, as its config.json says."""
        return str(read_described(self.folder / "config.json").get("kind"))

    @cached_property
    def opened(self) -> tuple[nn.Module, Source]:
        """The model with its head and what trims it, in evaluation mode, and its way of reading the split."""
        task = self.kind if self.kind in TEXTS else "retrieval"
        model, source = open_export(self.folder, task, self.split, scored=False)
        return model.to(self.device).eval(), source

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """As the export says."""
        return self.opened[1].normalise

    def model(self) -> Backbone:
        """The model, in evaluation mode; of a fine-tuned one the backbone, without what trims it.

        Raises:
            UserError: It reads no single pictures with texts.
        """
        if self.kind not in _LOOKED_INTO:
            raise UserError(
                f"{self.folder} holds a {self.kind!r} model; layers are looked into of {', '.join(_LOOKED_INTO)}: give "
                "such an export, as that of the run's pre-training"
            )
        model = self.opened[0]
        return model.backbone if isinstance(model, ClassificationModel) else cast(Backbone, model)

    def batches(self, samples: int, size: int) -> Iterator[ImageTextBatch]:
        """The first pairs of the split, `size` at a time, on the device; a fine-tuned model gets its task's texts."""
        text = TEXTS.get(cast(TaskName, self.kind), "captions")
        for batch in self.opened[1].batches(text, size, Process(), samples):
            yield batch.to(self.device)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, and no run."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").is_file()


def open_trained(folder: Path, split: str | None) -> Trained:
    """A run folder or an export folder.

    Args:
        folder: Either.
        split: Of the run's own, or a folder of indexed shards.

    Raises:
        UserError: It is neither, there is no pre-trained model, or no such split.
    """
    if is_export(folder):
        return TrainedExport.of(folder, split)
    return TrainedRun.of(folder, split)
