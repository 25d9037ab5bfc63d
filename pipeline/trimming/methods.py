"""SmartTrim and its baselines by name, each with its own settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.trimming.ftkd import FtkdConfig
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import SMARTTRIM, Policy
from pipeline.trimming.vision_only import ReductionConfig

MethodName = Literal[
    "smarttrim", "local", "random", "head_random", "grad_layer", "grad_all", "trips", "evit", "tome", "ftkd"
]
SMART: MethodName = "smarttrim"

_SECTIONS: Mapping[str, str] = {
    "local": "tokens", "random": "tokens", "head_random": "heads", "grad_layer": "heads", "grad_all": "heads",
    "trips": "trips", "evit": "evit", "tome": "tome", "ftkd": "ftkd",
}  # fmt: skip

_LATER: Mapping[str, Any] = {"image_size": None, "lr_scales": {}, "retrieval": {"false_texts": 15}}
"""Keys that say nothing unless they are given, as `validation`: what was finished before there were any stays so."""


@dataclass(frozen=True, kw_only=True)
class TokenBaselineConfig:
    """``local`` and ``random``.

    Attributes:
        heads: ``all``: every head works; ``trimmers``: SmartTrim's trimmers decide on heads.
    """

    heads: Literal["all", "trimmers"] = "all"


@dataclass(frozen=True, kw_only=True)
class HeadBaselineConfig:
    """``head_random``, ``grad_layer`` and ``grad_all``.

    Attributes:
        tokens: ``trimmers``: SmartTrim's trimmers decide on tokens, for heads alone are too few of the multiply-
            accumulates for 2x; ``all``: every token stays.
        instances: Training statements on which the gradients of a head are averaged.
    """

    tokens: Literal["all", "trimmers"] = "trimmers"
    instances: int = 1024

    def __post_init__(self) -> None:
        at_least(self, "trim.heads", 1, "instances")


@dataclass(frozen=True, kw_only=True)
class AttentiveBaselineConfig:
    """``trips`` and ``evit``; how much they keep is solved from the target.

    Attributes:
        layers: Vision layers, from 0 and rising, between whose attention and MLP tokens go; () for the method's own:
            the 5th and 10th of 12 (TRIPS), the 4th, 7th and 10th (EViT).
        fuse: Whether tokens that go are fused into one; TRIPS's query learns by that token alone, so it wants one.
        distill_weight: λ_SD; 0 is the published method's.
    """

    layers: tuple[int, ...] = ()
    fuse: bool = True
    distill_weight: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, "trim.trips or trim.evit", 0, "distill_weight")
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"trim.trips or trim.evit: layers={list(self.layers)} must name different layers, rising, such as "
                "[3, 6, 9]"
            )


@dataclass(frozen=True, kw_only=True)
class MergingBaselineConfig:
    """``tome``; how many tokens each layer merges is solved from the target.

    Attributes:
        distill_weight: λ_SD; 0 is the published method's.
    """

    distill_weight: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, "trim.tome", 0, "distill_weight")


@dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """A method by name; only its own section counts.

    Attributes:
        method: ``smarttrim``; ``local`` and ``random`` trim tokens, ``head_random``, ``grad_layer`` and ``grad_all``
            heads, ``trips``, ``evit`` and ``tome`` tokens of the vision tower; ``ftkd`` leaves layers out.
        tokens: Of ``local`` and ``random``.
        heads: Of ``head_random``, ``grad_layer`` and ``grad_all``.
        trips: Of ``trips``.
        evit: Of ``evit``.
        tome: Of ``tome``.
        ftkd: Of ``ftkd``.
    """

    method: MethodName = SMART
    tokens: TokenBaselineConfig = field(default_factory=TokenBaselineConfig)
    heads: HeadBaselineConfig = field(default_factory=HeadBaselineConfig)
    trips: AttentiveBaselineConfig = field(default_factory=AttentiveBaselineConfig)
    evit: AttentiveBaselineConfig = field(default_factory=AttentiveBaselineConfig)
    tome: MergingBaselineConfig = field(default_factory=MergingBaselineConfig)
    ftkd: FtkdConfig = field(default_factory=FtkdConfig)

    @property
    def needs_teacher(self) -> bool:
        """Whether it looks at the fine-tuned full model."""
        return self.method in ("ftkd", "grad_layer", "grad_all")

    @property
    def learns(self) -> bool:
        """Whether any trimmer scores, so that what is kept can be settled after training."""
        return self.method != "ftkd" and self.reduction is None and bool(self.policy.learned)

    @property
    def goes_with_pruning(self) -> bool:
        """Whether a backbone that prunes before each stage can be trimmed so: by scores of what is left, or heads."""
        return self.method != "ftkd" and self.reduction is None and self.policy.tokens != "random"

    @property
    def policy(self) -> Policy:
        """Who decides on tokens and heads, where anything is scored or drawn."""
        if self.method in ("local", "random"):
            return Policy(tokens=self.method, heads=self.tokens.heads)
        if self.method in ("head_random", "grad_layer", "grad_all"):
            return Policy(tokens="all" if self.heads.tokens == "all" else "global", heads="ranked")
        return SMARTTRIM

    @property
    def reduction(self) -> ReductionConfig | None:
        """What takes tokens out of the vision tower; None for other methods."""
        if self.method == "tome":
            return ReductionConfig(name="tome")
        if self.method in ("trips", "evit"):
            own = self.trips if self.method == "trips" else self.evit
            return ReductionConfig(name=self.method, layers=own.layers, fuse=own.fuse)
        return None

    @property
    def distill_weight(self) -> float | None:
        """The method's own λ_SD; None where SmartTrim's holds."""
        own = {"trips": self.trips.distill_weight, "evit": self.evit.distill_weight, "tome": self.tome.distill_weight}
        return own.get(self.method)


def what_counts(trim: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Of a resolved ``trim`` section what a stage's result depends on, but for its target.

    Args:
        trim: The section.
        target: Of the stage; the full model is changed by no method, and only a time is measured. What pruning is
            kept is told beside it.
    """
    left_out = {"targets", "latency", "keep_pruning", *_SECTIONS.values()}
    if target.is_full:
        left_out |= {"method", "smarttrim", "trimmer_scale", "init"}
    else:
        left_out.discard(_SECTIONS.get(trim["method"], ""))
    if target.unit == "ms":
        left_out.discard("latency")
    if trim.get("task") not in ("vqa", "vqa_generative"):
        left_out.add("answers")
    if trim.get("task") != "captioning":
        left_out.add("captions")
    left_out |= {key for key, ungiven in _LATER.items() if trim.get(key, ungiven) == ungiven}
    if not trim.get("validation", {}).get("every_steps"):
        left_out.add("validation")
    if trim.get("task") != "nlvr2":
        left_out.add("pair")
    if trim.get("task") != "retrieval":
        left_out.add("retrieval")
    counts = {key: value for key, value in trim.items() if key not in left_out}
    if "smarttrim" in counts:
        counts["smarttrim"] = _without_later(counts["smarttrim"])
    if trim.get("task") == "vqa":  # only a decoder's answers are chosen among candidates
        counts["answers"] = {key: value for key, value in trim["answers"].items() if key != "candidates"}
    return counts


def _without_later(smarttrim: Mapping[str, Any]) -> dict[str, Any]:
    """The section without keys that came later and say nothing where they are as they were before there were any."""
    trimmers = {key: value for key, value in smarttrim["trimmers"].items() if value or key != "noise_fade"}
    every = set(smarttrim.get("groups", SMARTTRIM.groups)) == set(SMARTTRIM.groups)
    return {key: value for key, value in smarttrim.items() if not (every and key == "groups")} | {"trimmers": trimmers}
