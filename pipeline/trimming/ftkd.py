"""FTKD: a student of fewer layers, begun as the teacher's and taught by its answers, hidden states and attention.

The teacher is the fine-tuned full model. B batch, N tokens, D width, H heads.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.limits import above_zero, at_least
from pipeline.measure.flops import StepCounts, block_macs
from pipeline.models.backbone import Backbone
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import site
from pipeline.precision import at_least_float32
from pipeline.trimming.cost import CostModel, Units
from pipeline.trimming.trimmers import block_size, group_of

NEAR = 0.02
"""Part of the wanted cost that a more even choice of layers may be off."""


@dataclass(frozen=True, kw_only=True)
class FtkdConfig:
    """What the student is taught by, besides the labels.

    Attributes:
        logits_weight: Divergence of its answers from the teacher's.
        hidden_weight: Squared distance of hidden states, each token's normalised first.
        attention_weight: Divergence of the attention maps.
    """

    logits_weight: float = 1.0
    hidden_weight: float = 1.0
    attention_weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "trim.ftkd", 0, "logits_weight", "hidden_weight", "attention_weight")
        if not self.logits_weight + self.hidden_weight + self.attention_weight:
            above_zero(self, "trim.ftkd", "logits_weight")


@dataclass(frozen=True)
class Layers:
    """How many layers each part has."""

    vision: int
    text: int
    fusion: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Layers":
        """Of a model; where the text's layers serve fusion too, both have as many."""
        text = config.text
        return cls(config.vision.depth, text.text_layers, text.fusion_layers or text.text_layers)

    def shares(self, whole: "Layers") -> tuple[float, float, float]:
        """Of a model with more."""
        return self.vision / whole.vision, self.text / whole.text, self.fusion / whole.fusion

    def cut(self, config: ModelConfig) -> ModelConfig:
        """The sizes with this many layers."""
        fusion = self.fusion if config.text.fusion_layers else 0
        text = replace(config.text, text_layers=self.text, fusion_layers=fusion)
        return replace(config, vision=replace(config.vision, depth=self.vision), text=text)


def choose_layers(cost: CostModel, units: Units, speed_up: float) -> Layers:
    """The layers of a student that costs the full model's MACs over `speed_up`, or nearly.

    Of those that come within `NEAR` the one whose parts keep the most alike; else the one that comes nearest.

    Raises:
        UserError: Even one layer in each part is dearer; the message names the highest reachable ratio.
    """
    model = cost.model
    whole, full = Layers.of(model.config), float(cost.full(units).mean())
    parts = [float(macs_B.mean()) for macs_B in _parts(cost, units)]

    def macs(student: Layers) -> float:
        gone = [total * (1 - share) for total, share in zip(parts, student.shares(whole), strict=True)]
        return full - sum(gone)

    numbers = (range(1, count + 1) for count in (whole.vision, whole.text, whole.fusion))
    students = [Layers(*each) for each in itertools.product(*numbers)]
    if not model.config.text.fusion_layers:
        students = [student for student in students if student.text == student.fusion]
    wanted, cheapest = full / speed_up, min(map(macs, students))
    if cheapest > wanted * (1 + NEAR):
        raise UserError(
            f"a target of {speed_up:g}x cannot be reached: a student of one layer in each part still costs "
            f"{cheapest / full:.0%} of the full model's MACs; the highest target is {full / cheapest:.2f}x"
        )
    near = [student for student in students if abs(macs(student) / wanted - 1) <= NEAR]
    if not near:
        return min(students, key=lambda student: abs(macs(student) - wanted))
    return min(near, key=lambda student: max(student.shares(whole)) - min(student.shares(whole)))


def thinnest_macs(cost: CostModel, units: Units) -> Tensor:
    """(B,) MACs of a student of one layer in each part."""
    shares = Layers(1, 1, 1).shares(Layers.of(cost.model.config))
    gone = [macs_B * (1 - share) for macs_B, share in zip(_parts(cost, units), shares, strict=True)]
    return cost.full(units) - torch.stack(gone).sum(0)


def _parts(cost: CostModel, units: Units) -> list[Tensor]:
    """(B,) MACs of all layers of the vision, text and fusion part, as far as the full model runs them."""
    return [_part_macs(cost, units, part) for part in ("vision", "text", "fusion")]


def _part_macs(cost: CostModel, units: Units, part: str) -> Tensor:
    """(B,) MACs of all layers of a part."""
    total = torch.zeros_like(1.0 * units.text)
    for step in (step for step in cost.full_steps if step.part == part):
        for advance in step.advances:
            tokens = 1.0 + units.of(group_of(advance.stream))
            source = sum((1.0 + units.of(group_of(name)) for name in advance.sources), torch.zeros_like(tokens))
            every = torch.full_like(tokens, block_size(advance)[1])
            total = total + block_macs(advance, StepCounts(tokens, source, every, every))
    return total


def teacher_layer(layer: int, layers: int, teacher_layers: int) -> int:
    """The teacher's layer that stands at the same depth.

    >>> [teacher_layer(layer, 3, 6) for layer in range(3)]
    [1, 3, 5]
    """
    return math.ceil((layer + 1) * teacher_layers / layers) - 1


class LayerMap:
    """Which sites of the student belong to which of the teacher's.

    Args:
        student: With fewer layers.
        teacher: The full model.
    """

    def __init__(self, student: Backbone, teacher: Backbone) -> None:
        steps = {(step.part, step.layer): step for step in teacher.schedule}
        self.blocks: list[tuple[nn.Module, nn.Module]] = []
        self.attention: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        for step in student.schedule:
            counts = [sum(s.part == step.part for s in model.schedule) for model in (student, teacher)]
            same = steps[step.part, teacher_layer(step.layer, *counts)]
            # What a layer is given is what the one before it has made; a first layer is given embeddings.
            given = step if step.layer == 0 else steps[step.part, teacher_layer(step.layer - 1, *counts) + 1]
            for advance, other in zip(step.advances, same.advances, strict=True):
                self.blocks.append((cast(nn.Module, advance.block), cast(nn.Module, other.block)))
                if step.part == "text" and student.fuses_from_words:
                    continue  # the same blocks again, and neither model runs them so: nobody looks at the text alone
                self.attention[site(step, advance)] = site(same, other)
                if step.layer > 0:
                    self.hidden[site(step, advance)] = site(given, other)


def begin_student(student: nn.Module, teacher: nn.Module, layers: LayerMap) -> None:
    """Gives a student the teacher's weights: its embeddings and heads, and of its layers those at the same depth."""
    own = student.state_dict()
    given = {name: tensor for name, tensor in teacher.state_dict().items() if name in own}
    student.load_state_dict({name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}, False)
    for block, other in layers.blocks:
        block.load_state_dict(other.state_dict())


def hidden_distance(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: LayerMap, mask_BL: Tensor
) -> Tensor:
    """Mean over layers of the squared distance of hidden states, of tokens that are there."""
    parts = []
    for name, other in layers.hidden.items():
        own, wanted = (_normal(seen[f"hidden/{at}"]) for seen, at in ((student, name), (teacher, other)))
        parts.append(_mean_there((own - wanted).square().mean(-1), name, mask_BL))
    return torch.stack(parts).mean() if parts else mask_BL.new_zeros((), dtype=torch.float32)


def attention_divergence(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: LayerMap, mask_BL: Tensor
) -> Tensor:
    """Mean over layers of KL( teacher ‖ student ) of what tokens that are there attend to, mean over heads."""
    parts = []
    for name, other in layers.attention.items():
        own, wanted = (at_least_float32(seen[f"attention/{at}"]) for seen, at in ((student, name), (teacher, other)))
        divergence_BHN = (torch.xlogy(wanted, wanted) - wanted * own.clamp(min=1e-9).log()).sum(-1)
        parts.append(_mean_there(divergence_BHN.mean(1), name, mask_BL))
    return torch.stack(parts).mean()


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(at_least_float32(x), x.shape[-1:])


def _mean_there(values_BN: Tensor, name: str, mask_BL: Tensor) -> Tensor:
    """Mean over a stream's tokens without padding; images have none."""
    if not name.endswith("_text"):
        return values_BN.mean()
    there_BL = mask_BL.to(values_BN.dtype)
    return (values_BN * there_BL).sum() / there_BL.sum()
