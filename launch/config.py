"""The configuration of a run: every part's own dataclass under one name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.errors import UserError
from data_prep.sources import SourceConfig
from launch.cluster_config import BudgetConfig, ClusterConfig
from launch.reading import check_name
from pipeline.checkpoint_rules import CheckpointConfig
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import TokenizerConfig
from pipeline.engine import EngineConfig
from pipeline.evaluation.config import EvaluateConfig
from pipeline.models.config import ModelConfig
from pipeline.pretrain import PretrainConfig
from pipeline.tracking import TrackingConfig
from pipeline.trim_config import TrimConfig

_TAKEN = "retrieval"
"""What the results of pre-training are called by."""


@dataclass(frozen=True, kw_only=True)
class TaskEvaluateConfig(EvaluateConfig):
    """What is evaluated of a further task's models: the keys of `evaluate`, but nothing of pre-training's.

    Attributes:
        retrieval_splits: None: the pre-trained model is evaluated once, as the run's own `evaluate` says.
    """

    retrieval_splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retrieval_splits:
            raise UserError(
                f"evaluate.retrieval_splits={list(self.retrieval_splits)} is not a further task's to say: the "
                "pre-trained model is evaluated once; leave it out, or set the run's own"
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A further task that the same pre-trained model is fine-tuned for, beside the run's own `trim` and `evaluate`.

    Attributes:
        trim: Trimming, one stage for each target; without targets the task is left out.
        evaluate: Evaluation of its models.
        vocabulary: Whether its questions, and answers that a decoder tells, count for a vocabulary that the run trains.
            With false it can be added to a run that has trained one: words that are not in it are spelt in pieces.
    """

    trim: TrimConfig
    evaluate: TaskEvaluateConfig = field(default_factory=TaskEvaluateConfig)
    vocabulary: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: shards, pre-training, trimming, evaluation and report.

    Attributes:
        name: The run's name, shown in its report.
        out: Folder that the run writes; the same folder again goes on where it stopped.
        seed: Seeds the models, the order of the samples and their augmentation.
        launcher: Who starts the processes: Ray, or this process (and torchrun's, where it started this one).
        cluster: How many processes, and with what.
        budget: How long training may take.
        data: Where the samples come from.
        loader: How shards become batches.
        tokenizer: The vocabulary, trained on the training captions.
        model: The backbone.
        pretrained: Folder of a pre-trained model to fine-tune, as pre-training exports it or `trimline import` writes
            it: model, pictures and tokenizer are then that folder's, and nothing is pre-trained. None pre-trains one.
        engine: What carries out a step.
        checkpoint: Where checkpoints go, and which of them stay.
        pretrain: Pre-training.
        trim: Trimming, one stage for each target.
        evaluate: Evaluation.
        tasks: Further tasks by name, each with its own `trim` and `evaluate`. The name becomes part of the names of
            stages and results.
        tracking: Where numbers go besides the run folder.
    """

    name: str
    out: str
    seed: int = 0
    launcher: Literal["ray", "local"] = "ray"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    data: SourceConfig
    loader: LoaderConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    pretrained: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    pretrain: PretrainConfig
    trim: TrimConfig
    evaluate: EvaluateConfig
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name:
            raise UserError(f"name={self.name!r} must be a word without '/', such as demo")
        if not self.out.strip():
            raise UserError("out='' must be a folder, such as runs/demo")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be 0 or more")
        for name in self.tasks:
            self._check_task(name)
        if self.pretrained is not None:  # worker processes may run in other folders than the command
            object.__setattr__(self, "pretrained", str(Path(self.pretrained).expanduser().absolute()))

    @property
    def pretrain_splits(self) -> tuple[str, ...]:
        """The splits that this run pre-trains on."""
        return tuple(self.pretrain.splits) if self.pretrained is None else ()

    def _check_task(self, name: str) -> None:
        """Refuses the name of a further task that is none, or stands for other stages or results already."""
        check_name("tasks", name)
        if name == _TAKEN or (name == self.trim.task and self.trim.targets):
            whose = "pre-training's results" if name == _TAKEN else "the stages of the run's own trim.task"
            raise UserError(f"tasks.{name}: {whose} are called so already; give another name, such as {name}_2")
