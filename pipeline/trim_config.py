"""Settings of the trimming stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data_prep.errors import UserError
from pipeline.data.loader import LoaderConfig
from pipeline.data.order import Unit
from pipeline.engine import OptimizerConfig
from pipeline.generation import CaptionConfig
from pipeline.limits import above_zero, at_least, weights_above_zero
from pipeline.loop_config import LoopConfig
from pipeline.measure.latency import LatencyConfig
from pipeline.models.backbone import PairWay
from pipeline.param_groups import check_scales
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.answer_list import AnswersConfig
from pipeline.tasks.classes import TOLD, TaskName
from pipeline.tasks.classification import SmartTrimConfig
from pipeline.tasks.comparing import RetrievalConfig
from pipeline.trimming.methods import SMART, MethodsConfig
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig
from pipeline.trimming.vision_only import ReductionConfig
from pipeline.validation import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class TrimConfig(MethodsConfig):
    """Fine-tuning on a task for one or several targets, with SmartTrim or a baseline (`MethodsConfig`).

    Attributes:
        task: ``statement``: is a sentence true of a picture? ``snli_ve``: does a picture entail a sentence,
            contradict it, or neither? ``vqa``: which answer of a list? ``vqa_generative``: the same by a
            decoder that ranks the list (ALBEF, BLIP). ``captioning``: what is to be told of a picture (BLIP)?
            ``nlvr2``: is a sentence true of two pictures? ``retrieval``: which text belongs to a picture, which
            picture to a text?
        splits: Split folders to train on, and the weight of each in every batch.
        targets: Wanted costs: ``2.0x`` (or 2.0), a ratio of multiply-accumulates; ``12 GFLOPs`` (or ``12 GMACs``, the
            same: a multiplication with its addition counts as one, in TFLOP/s of logs and reports as two);
            ``35 ms``, one instance at a time on the machine that trains, for methods with trimmers. 1.0 is the full
            model.
        init: What a trimmed model begins as: ``pretrained``, one fine-tuning run for all (the paper's); ``finetuned``,
            the full model of this run (1.0x) with its head, two runs. What all of it took is in the results.
        keep_pruning: Whether the backbone is pruned as in pre-training (ELIP) while it is fine-tuned and ever after:
            the full model too, from which a speed-up then counts. None for each backbone's own way: METER is, where the
            method allows it and a text is there to prune by (``retrieval`` has none), the others are not.
        answers: Which answers ``vqa`` and ``vqa_generative`` tell apart.
        captions: How ``captioning`` tells of pictures; the prompt stands before every caption in training, and its
            tokens count among `max_tokens`.
        image_size: Side in pixels of the square pictures of fine-tuning and ever after, where that is another one than
            pre-training's: positions are interpolated. None for pre-training's own.
        retrieval: What ``retrieval`` is trained with, where that is not contrast.
        pair: How ``nlvr2`` reads two pictures. ``passes``: the text is fused with each, and the head sees the features
            of both; ``both``: the text attends to both at once, which METER cannot. None for the backbone's own way:
            ``passes`` of METER, ``both`` of the others.
        max_tokens: Length of statements and questions in training, where they are shorter than what the loader pads
            captions to; None for the loader's. Longer ones are cut. Targets, validation, evaluation and the export
            take the larger of both; captions are as long everywhere.
        loop: Durations and learning-rate schedule.
        optimizer: AdamW; the rate of the backbone.
        lr_scales: Learning rates of the backbone's parts over that, by the beginning of their parameters' names:
            METER's fusion layers learn five times as fast as its encoders.
        head_scale: Learning rate of the head over the backbone's.
        trimmer_scale: Learning rate of the trimmers over the backbone's: they begin far on the side of keeping.
        smarttrim: Constants; its curriculum and self-distillation hold for the baselines too, where they have none of
            their own.
        latency: How milliseconds are taken, where a target is a time.
        validation: Held-out data that fine-tuning is scored on, to export the best weights.
    """

    task: TaskName = "statement"
    splits: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    targets: tuple[float | str, ...] = (1.0, 2.0)
    init: Literal["pretrained", "finetuned"] = "pretrained"
    keep_pruning: bool | None = None
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    image_size: int | None = None
    pair: PairWay | None = None
    max_tokens: int | None = None
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scales: dict[str, float] = field(default_factory=dict)
    head_scale: float = 1.0
    trimmer_scale: float = 1.0
    smarttrim: SmartTrimConfig = field(default_factory=SmartTrimConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        weights_above_zero(self.splits, "trim.splits")
        self._check_targets([Target.parse(target) for target in self.targets])
        above_zero(self, "trim", "head_scale", "trimmer_scale")
        if self.method != SMART and set(self.smarttrim.groups) != set(SMARTTRIM.groups):
            raise UserError(
                f"trim.smarttrim.groups={list(self.smarttrim.groups)} is of trim.method=smarttrim alone, not of "
                f"{self.method}; leave it out"
            )
        if self.max_tokens is not None:
            at_least(self, "trim", 3, "max_tokens")  # begin, one word, end
        check_scales("trim.lr_scales", self.lr_scales)
        if self.task == "nlvr2" and self.method == "ftkd":
            raise UserError("trim.method=ftkd is not made for trim.task=nlvr2, which has two pictures; use another")
        if self.task in (*TOLD, "vqa_generative"):
            self._check_no_classifier([Target.parse(target) for target in self.targets])

    @property
    def policy(self) -> Policy:
        """See `MethodsConfig.policy`; SmartTrim's own with the groups that it is to trim."""
        if self.method != SMART:
            return super().policy
        return replace(SMARTTRIM, groups=tuple(group for group in SMARTTRIM.groups if group in self.smarttrim.groups))

    def check_taught(self, targets: Sequence[Target]) -> None:
        """Refuses what would train a method that learns nothing; what older runs have trained so is still read.

        Args:
            targets: To be trained.

        Raises:
            UserError: One of them trims.
        """
        if all(target.is_full for target in targets):
            return
        if self.method == "trips" and not self.trips.fuse:
            raise UserError(
                "trim.trips.fuse=false leaves TRIPS's query of the text untrained, which learns by the weights of the "
                "fused token alone; leave it out, or give trim.method=evit, which has no query of its own"
            )
        if self.task == "captioning" and self.policy.groups == ("text",):
            raise UserError(
                "trim.smarttrim.groups=['text'] leaves trim.task=captioning nothing to trim, for its texts are told "
                "and not read; name vision, msa or mca"
            )

    def _check_no_classifier(self, targets: list[Target]) -> None:
        """Refuses what was made for classifiers that look at a text beside the picture."""
        if self.method not in ("smarttrim", "local"):
            raise UserError(f"trim.task={self.task} goes with trim.method smarttrim or local, not {self.method}")
        if self.keep_pruning:
            raise UserError(f"trim.keep_pruning=true does not go with trim.task={self.task}; leave it out")
        timed = next((target for target in targets if target.unit == "ms"), None)
        if timed is not None:
            raise UserError(
                f"trim.targets: {timed} is not timed for trim.task={self.task}; give a speed-up such as 2.0x"
            )

    def _check_targets(self, targets: list[Target]) -> None:
        if len({target.name for target in targets}) != len(targets):
            raise UserError(f"trim.targets={list(self.targets)} must be different from each other; leave one out")
        if self.needs_full and targets and not any(target.is_full for target in targets):
            given = f"method={self.method} looks at" if self.needs_teacher else f"init={self.init} begins from"
            raise UserError(f"trim.{given} the fine-tuned full model: trim.targets={list(self.targets)} must hold 1.0")
        if self.init == "finetuned" and self.method == "ftkd":
            raise UserError("trim.init=finetuned changes nothing for trim.method=ftkd, which begins so; leave it out")
        timed = next((target for target in targets if target.unit == "ms"), None)
        if timed is not None and not self.learns:
            raise UserError(
                f"trim.targets: a target of {timed} is settled by trimmers' scores, but trim.method={self.method} has "
                "none as it is set; give a speed-up such as 2.0x or multiply-accumulates such as '12 GFLOPs'"
            )

    def loader(self, loader: LoaderConfig) -> LoaderConfig:
        """How fine-tuning reads its data: pictures and texts of its own sizes.

        Args:
            loader: Of the run.
        """
        side, tokens = self.image_size, self.max_tokens
        if side is not None:
            loader = replace(loader, height=side, width=side)
        return loader if tokens is None else replace(loader, max_tokens=tokens)

    def exported_loader(self, loader: LoaderConfig) -> LoaderConfig:
        """How the trained model reads data, in validation, in evaluation and from its export: not shorter than the run.

        Args:
            loader: Of the run.
        """
        return replace(self.loader(loader), max_tokens=self.exported_tokens(loader.max_tokens))

    def exported_tokens(self, tokens: int) -> int:
        """Length of the texts that the trained model reads, and that its target is settled on.

        Args:
            tokens: Of the run's loader.
        """
        trained = tokens if self.max_tokens is None else self.max_tokens
        return trained if self.task == "captioning" else max(trained, tokens)

    def kept_pruning(self, backbone: str, pruning: PruningConfig) -> ElipConfig | None:
        """Pre-training's pruning where the backbone keeps it.

        Args:
            backbone: Its name.
            pruning: As in pre-training.

        Raises:
            UserError: It is to be kept, but cannot be.
        """
        elip = pruning.chosen if isinstance(pruning.chosen, ElipConfig) and self.goes_with_pruning else None
        if self.keep_pruning and elip is None:
            raise UserError(
                f"trim.keep_pruning=true goes with pretrain.pruning.method=elip (given: {pruning.method}) and a "
                "trim.method that leaves the vision tower's tokens to trimmers or alone "
                f"(given: {self.method}); leave it out"
            )
        own = backbone == "meter" and self.task != "retrieval"  # whose pictures no text guides
        keep = own if self.keep_pruning is None else self.keep_pruning
        return elip if keep else None

    def leaves_pruning(self, backbone: str, pruning: PruningConfig) -> bool:
        """Whether the method alone has pre-training's pruning left out: speed-ups then count from another full model.

        Args:
            backbone: Its name.
            pruning: As in pre-training.
        """
        own = self.keep_pruning is None and backbone == "meter" and isinstance(pruning.chosen, ElipConfig)
        return own and not self.goes_with_pruning and any(not Target.parse(each).is_full for each in self.targets)

    @property
    def least(self) -> int:
        """Samples that each part of a batch must have: retrieval finds its negatives there."""
        return 2 if self.task == "retrieval" else 1

    @property
    def unit(self) -> Unit:
        """What an epoch visits once: of retrieval each picture with a caption drawn by seed, as pre-training does."""
        return "image" if self.task == "retrieval" else "pair"

    @property
    def of_task(self) -> dict[str, Any]:
        """What a task's model is told besides."""
        if self.task == "retrieval":
            return {"retrieval": self.retrieval}
        return {"pair": self.pair} if self.task == "nlvr2" else {}

    def within(self, part: int) -> "TrimConfig":
        """The same with no more false texts than there are.

        Args:
            part: Samples of all processes that are compared with each other.
        """
        if self.task != "retrieval":
            return self
        return replace(self, retrieval=RetrievalConfig(false_texts=min(self.retrieval.false_texts, part - 1)))

    @property
    def needs_full(self) -> bool:
        """Whether the trimmed models need the fine-tuned full one."""
        return self.needs_teacher or self.init == "finetuned"

    @property
    def trims(self) -> TrimmerConfig | ReductionConfig | None:
        """What trims; None where layers are left out instead."""
        return None if self.method == "ftkd" else self.reduction or self.smarttrim.trimmers
