"""Classification of a picture or a pair with a text (`classes`): a head on fused features, with or without trimmers.

B batch, L text tokens, D width, A classes or answers.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.limits import at_least
from pipeline.models.backbone import Backbone, PairWay
from pipeline.models.blip_tasks import BlipPair
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.models.heads import TaskClassifier
from pipeline.models.pairs import begin_pairs, both_features, own_way, pair_features, rows_of_pairs, twice
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.gather import global_means
from pipeline.precision import at_least_float32
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classes import NLVR2, STATEMENT, Classes
from pipeline.tasks.task import EachPartAlone, Losses
from pipeline.trimming.cost import CostModel, Units, cost_loss, solve_share, units_of
from pipeline.trimming.curriculum import Curriculum, CurriculumConfig
from pipeline.trimming.kept_pruning import KeptPruning
from pipeline.trimming.smarttrim import Decision, Gate, GumbelGate, MaskedTrimming, PackedTrimming, threshold
from pipeline.trimming.trimmers import SMARTTRIM, Group, Policy, TrimmerConfig, Trimmers
from pipeline.trimming.vision_only import ReducedVision, ReductionConfig, VisionRun


@dataclass(frozen=True, kw_only=True)
class SmartTrimConfig:
    """SmartTrim's constants.

    Attributes:
        trimmers: Size and start of the trimmers.
        curriculum: Fall of the kept shares.
        groups: What SmartTrim trims: tokens of pictures (``vision``) and texts, heads of self-attention (``msa``) and
            cross-attention (``mca``). A small model may want its few heads, and fewer tokens for them.
        distill_weight: λ_SD, of the full model's loss and the divergence from it.
        cost_weight: λ_cost.
        calibrate: Training instances on which the scores' shift is settled at the end, so that the mean cost is the
            target's; 0 leaves it as training left it. Captioners tell of them by beam search, twice or more.
    """

    trimmers: TrimmerConfig = field(default_factory=TrimmerConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    groups: tuple[Group, ...] = SMARTTRIM.groups
    distill_weight: float = 1.0
    cost_weight: float = 20.0
    calibrate: int = 1024

    def __post_init__(self) -> None:
        at_least(self, "smarttrim", 0, "distill_weight", "cost_weight", "calibrate")
        if not self.groups or len(set(self.groups)) != len(self.groups):
            given = ", ".join(SMARTTRIM.groups)
            raise UserError(f"smarttrim.groups={list(self.groups)} must name at least one of {given}, each once")


class Answers(NamedTuple):
    """Scores of the classes; a tuple, for ZeRO 3 looks into tuples for the tensors that a model gives.

    Attributes:
        full_BA: Of the untrimmed model; None where it was not asked.
        trimmed_BA: Of the trimmed model; None where there are no trimmers.
        decisions: What was trimmed.
        watched: What an intervention that only looks has seen in the full model.
    """

    full_BA: Tensor | None
    trimmed_BA: Tensor | None = None
    decisions: Mapping[str, Decision] = MappingProxyType({})
    watched: Mapping[str, Tensor] = MappingProxyType({})


class Watch(Intervention, Protocol):
    """An intervention that only looks."""

    seen: dict[str, Tensor]


class ClassificationModel(nn.Module):
    """A pre-trained backbone with a classifier, and trimmers if it is to be trimmed.

    Args:
        backbone: Shared, not copied; for pairs it is changed into one that reads them.
        trimmers: Sizes of what trims, or a method that reduces the vision tower, or None for the full model.
        policy: Who decides on tokens and heads: SmartTrim or one of its baselines.
        whole: Sizes of the model that costs are compared with, where that is not the backbone: a student's teacher.
        pruning: Pre-training's, if the backbone keeps it; the full model has it too.
        together: Whether trimmers have both encoders advance side by side; None where the backbone says so and no
            pruning has the image wait for the text. Of pairs only where a score looks at the other modality.
        classes: What the head tells apart.
        pair: How pairs of pictures are read, where the classes are told of such; None for the backbone's own way.

    Raises:
        UserError: The backbone cannot judge statements, or not pairs in this way, or the pruning does not fit it.
    """

    encodes_apart = False
    """Whether the text is encoded alone, whoever looks at it."""

    def __init__(
        self,
        backbone: Backbone,
        trimmers: TrimmerConfig | ReductionConfig | None,
        policy: Policy = SMARTTRIM,
        whole: ModelConfig | None = None,
        pruning: ElipConfig | None = None,
        together: bool | None = None,
        classes: Classes = STATEMENT,
        pair: PairWay | None = None,
    ) -> None:
        super().__init__()
        if not backbone.fusion_steps:
            raise UserError(
                f"{backbone.config.backbone} has no fusion layers, so it cannot judge statements; use another"
            )
        if classes == NLVR2:
            begin_pairs(backbone, pair or own_way(backbone))
        self.backbone = backbone
        self.classes = classes
        self.cls_head: nn.Module = self.make_head()
        self.trimmers: Trimmers | ReducedVision | None = None
        if isinstance(trimmers, TrimmerConfig):
            default = backbone.encodes_together and pruning is None
            beside = default if together is None else together
            # A pair's text is encoded with each picture there, which a score alone asks for that looks at the picture.
            beside = beside and (policy.asks or backbone.pair is None)
            asked = self.encodes_apart or (policy.trims_guide and pruning is not None)
            self.trimmers = Trimmers(backbone, trimmers, policy, beside, asked=asked)
        elif trimmers is not None:
            self.trimmers = ReducedVision(backbone, trimmers)
        self.whole = whole
        self.pruning = None if pruning is None else KeptPruning(backbone, pruning)

    def make_head(self) -> nn.Module:
        """(B, F) -> (B, A)."""
        if isinstance(self.backbone, BlipPair):
            return self.backbone.cls_head  # the official model brings its own
        if self.classes == STATEMENT:
            # Whether a statement is true of a picture is what matching asked of captions: the head begins so.
            return copy.deepcopy(self.backbone.itm_head)
        features = self.backbone.itm_head.in_features
        seen = 2 * features if self.backbone.pair == "passes" else features
        return TaskClassifier(seen, features, len(self.classes.names))

    def trimming(
        self, ids_BL: Tensor, mask_BL: Tensor, gate: Gate | None = None
    ) -> MaskedTrimming | PackedTrimming | VisionRun | None:
        """The intervention that trims a batch; None for a model that has none.

        Args:
            ids_BL: Token ids.
            mask_BL: True at real tokens.
            gate: Turns scores into masks that leave everything in its place, as training wants it; None takes out what
                is trimmed.
        """
        if self.trimmers is None:
            return None
        if isinstance(self.trimmers, ReducedVision):
            return self.trimmers.run()
        ranks = self.trimmers.ranks(ids_BL, mask_BL)
        return PackedTrimming(self.trimmers, ranks) if gate is None else MaskedTrimming(self.trimmers, gate, ranks)

    def classify(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]) -> Tensor:
        """(B, A) scores of the classes.

        Args:
            pixels: (B, 3, height, width), normalised; of pairs (B, 2, 3, height, width).
            ids_BL: Token ids.
            mask_BL: True at real tokens.
            interventions: Trimming, masked or packed, or none.
        """
        text, image = self._encode(pixels, ids_BL, mask_BL, interventions)
        scores: Tensor = self.cls_head(self._fused(text, image, interventions))
        return at_least_float32(scores)  # the losses are computed outside of autocast

    def _encode(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]
    ) -> tuple[TokenStream, TokenStream]:
        """What fusion begins with; of pairs the image has 2 B rows, and the text too where each is fused apart."""
        pair = self.backbone.pair
        if pair is not None:
            pixels = rows_of_pairs(pixels)
        if self._trims_together(interventions):
            if pair is not None:
                ids_BL, mask_BL = ids_BL.repeat(2, 1), mask_BL.repeat(2, 1)
            encoded, image = self.backbone.encode_together(pixels, ids_BL, mask_BL, interventions)
            return self.backbone.begin_fusion(encoded, ids_BL, mask_BL), image
        text = self.encode_asked_text(ids_BL, mask_BL, interventions)
        guide = text if pair is None or text is None else twice(text)
        pruning: list[Intervention] = []
        if self.pruning is not None:
            assert guide is not None, "pruning asks for the text"
            pruning = [self.pruning.begin(guide)]
        image = self.backbone.encode_image(pixels, [*pruning, *interventions], guide)
        begun = self.backbone.begin_fusion(text, ids_BL, mask_BL)
        return (twice(begun) if pair == "passes" else begun), image

    def _trims_together(self, interventions: Sequence[Intervention]) -> bool:
        """Whether the encoders advance side by side; nothing but trimmers has a pair's text encoded twice."""
        trims = any(isinstance(each, MaskedTrimming | PackedTrimming) for each in interventions)
        return trims and isinstance(self.trimmers, Trimmers) and self.trimmers.together

    def encode_asked_text(
        self, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention]
    ) -> TokenStream | None:
        """The text alone; None where nothing asks for it: fusion begins from the words, and nothing else looks at it.

        Interventions that do not say `looks_at_text` do. `CostModel` counts likewise.
        """
        looking = [each for each in interventions if getattr(each, "looks_at_text", True)]
        if self.backbone.fuses_from_words and self.pruning is None and not looking:
            return None
        return self.backbone.encode_text(ids_BL, mask_BL, interventions)

    def _fused(self, text: TokenStream, image: TokenStream, interventions: list[Intervention]) -> Tensor:
        """What the head looks at."""
        if self.backbone.pair == "passes":
            return pair_features(self.backbone, text, image, interventions)
        if self.backbone.pair == "both":
            return both_features(self.backbone, text, image, interventions)
        return self.backbone.fuse(text, image, interventions).features_BF

    def forward(
        self,
        pixels: Tensor,
        ids_BL: Tensor,
        mask_BL: Tensor,
        gate: Gate | None,
        full: bool,
        watch: Watch | None = None,
    ) -> Answers:
        """Answers of the trimmed model under `gate`, and of the full one if `full` or there are no trimmers."""
        full_BA = None
        if full or self.trimmers is None:
            full_BA = self.classify(pixels, ids_BL, mask_BL, [] if watch is None else [watch])
        trimming = None if gate is None else self.trimming(ids_BL, mask_BL, gate)
        if trimming is None:
            return Answers(full_BA, watched={} if watch is None else watch.seen)
        return Answers(full_BA, self.classify(pixels, ids_BL, mask_BL, [trimming]), trimming.decisions)

    def cost_model(self) -> CostModel:
        """Cost of an instance's way through the model."""
        return CostModel(self.backbone, self.cls_head, self.trimmers, self.pruning)

    def training_cost_model(self) -> CostModel:
        """Cost of an instance's way through the model in training."""
        return self.cost_model()

    def unpruned_macs(self, units: Units) -> Tensor:
        """(B,) MACs of the full model without the pruning that it keeps."""
        return (
            self.full_macs(units) if self.pruning is None else CostModel(self.backbone, self.cls_head, None).full(units)
        )

    def full_macs(self, units: Units) -> Tensor:
        """(B,) MACs of the full model that this one is made from."""
        return self._full_cost().full(units)

    def full_macs_by_module(self, units: Units) -> dict[str, float]:
        """Sums over instances of `full_macs`, by module."""
        return self._full_cost().full_by_module(units)

    def _full_cost(self) -> CostModel:
        if self.whole is None:
            return self.cost_model()
        with torch.device("meta"):
            return CostModel(build_model(self.whole), self.cls_head, None)

    def macs_by_module(self, decisions: Mapping[str, Decision], units: Units) -> dict[str, float]:
        """Sums over instances of `macs`, by module."""
        cost = self.cost_model()
        return cost.full_by_module(units) if self.trimmers is None else cost.by_module(decisions, units)

    def macs(self, decisions: Mapping[str, Decision], units: Units) -> Tensor:
        """(B,) MACs of these decisions; without trimmers there are none, and the model has always the same."""
        cost = self.cost_model()
        return cost.full(units) if self.trimmers is None else cost.of(decisions, units)

    @torch.no_grad()
    def cost_shares(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """(B,) MACs of the trimmed model over the full one's, decided as in inference."""
        answers, units = self(pixels, ids_BL, mask_BL, threshold, False), units_of(self.backbone, mask_BL)
        return self.macs(answers.decisions, units) / self.full_macs(units)


class ClassificationTask(EachPartAlone):
    """Fine-tuning on a task's classes; with a target above 1, SmartTrim or what the model has in its place.

    Args:
        model: Backbone, head and what trims.
        normalise: Maps uint8 pixels to the model's input.
        target: Wanted ratio of MACs; 1 trains the full model.
        smarttrim: Constants; those of what is learned count only where it is.
        typical: Units of typical instances, from which the kept share is solved.
    """

    def __init__(
        self,
        model: ClassificationModel,
        normalise: Callable[[Tensor], Tensor],
        target: float,
        smarttrim: SmartTrimConfig,
        typical: Units,
    ) -> None:
        self.module: nn.Module = model
        self.model = model
        self.classes = model.classes
        self.normalise = normalise
        self.target = target
        self.config = smarttrim
        self.cost = model.cost_model()
        share = 1.0 if model.trimmers is None else solve_share(self.cost, typical, target)
        learned = () if model.trimmers is None else sorted(model.trimmers.learned)
        self.curriculum = Curriculum(smarttrim.curriculum, share, learned, 1 / target)
        self.measured: list[dict[str, Tensor]] = []

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """The task's loss; with trimmers also the full model's, the divergence from it, and the cost."""
        pixels, targets = self.normalise(batch.pixels), self.classes.targets(batch)
        full = self.config.distill_weight > 0
        answers: Answers = forward(pixels, batch.token_ids, batch.token_mask, self.gate(progress), full)
        return self.losses_of(answers, targets, batch, progress)

    def losses_of(self, answers: Answers, targets: Any, batch: ImageTextBatch, progress: float) -> Losses:
        """The same of what the model has said; `targets` as the classes want them."""
        if answers.trimmed_BA is None:
            assert answers.full_BA is not None
            loss = self.classes.loss(answers.full_BA, targets)
            return Losses(loss, {"task": loss}, {"accuracy": self.classes.accuracy(answers.full_BA, targets)})
        return self._trimmed(answers, targets, units_of(self.model.backbone, batch.token_mask), progress)

    def gate(self, progress: float) -> Gate:
        """How trimmers' scores are turned into masks now."""
        trimmers = self.config.trimmers
        return GumbelGate(trimmers.noise_at(progress), trimmers.temperature, dict(self.curriculum.shifts))

    def _trimmed(self, answers: Answers, targets: Any, units: Units, progress: float) -> Losses:
        assert answers.trimmed_BA is not None
        measured = (self.cost.of(answers.decisions, units) / self.cost.full(units)).mean()
        # Cost is that of the global batch: a process alone would have its own few instances keep the wanted share.
        shares = global_means({**self.cost.kept_shares(answers.decisions, units), "measured": measured})
        measured = shares.pop("measured")
        wanted = self.curriculum.asked(progress)
        total = self.classes.loss(answers.trimmed_BA, targets)
        named = {"task": total}
        assert self.model.trimmers is not None
        learned = {group: share for group, share in shares.items() if group in self.model.trimmers.learned}
        if learned:
            named["cost"] = cost_loss(learned, dict.fromkeys(learned, wanted))
            total = total + self.config.cost_weight * named["cost"]
            self.measured.append({name: value.detach() for name, value in {**learned, "cost": measured}.items()})
        if answers.full_BA is not None:
            named["full"] = self.classes.loss(answers.full_BA, targets)
            named["divergence"] = self.classes.divergence(answers.trimmed_BA, answers.full_BA)
            total = total + self.config.distill_weight * (named["full"] + named["divergence"])
        scalars: dict[str, Tensor | float] = {f"kept/{group}": share.detach() for group, share in shares.items()}
        scalars |= {f"shift/{group}": shift for group, shift in self.curriculum.shifts.items()}
        scalars |= {"wanted": wanted, "cost_share": measured}
        scalars["accuracy"] = self.classes.accuracy(answers.trimmed_BA, targets)
        return Losses(total, named, scalars)

    def before_update(self, progress: float) -> None:
        """Let what is not learned keep as much as the curriculum says."""
        if self.model.trimmers is not None:
            self.model.trimmers.set_share(self.curriculum.wanted(progress))

    def after_update(self, progress: float) -> None:
        """Move the scores' shifts by what the update's parts kept and cost."""
        if self.measured:
            kept = {name: fmean(float(part[name]) for part in self.measured) for name in self.measured[0]}
            self.curriculum.observe(progress, kept, cost=kept.pop("cost"))
            self.measured.clear()

    def drop_update(self) -> None:
        """Forget what it cost."""
        self.measured.clear()

    def tensors(self) -> dict[str, Tensor]:
        """State of the curriculum."""
        return self.curriculum.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take it."""
        self.curriculum.load(tensors)
