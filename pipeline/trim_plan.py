"""From a target to what training asks for: the ratio of multiply-accumulates that reaches it."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.latency import Instance, Latency, LatencyConfig, alike, alone, candidates, latency_curve
from pipeline.stage import Stage
from pipeline.tasks.classification import ClassificationModel
from pipeline.together import together
from pipeline.trimming.cost import Units, units_of
from pipeline.trimming.ftkd import thinnest_macs
from pipeline.trimming.target import EVERYTHING, Target, check_target
from pipeline.trimming.trimmers import SMARTTRIM, Trimmers

log = logging.getLogger(__name__)

MOST_SHARE = 0.99
"""Of the full cost: the trimmers themselves cost something."""
_FILE = "target.json"


@dataclass(frozen=True)
class Examples:
    """Instances of the data that the target is settled on.

    Attributes:
        draw: Gives so many training instances, from all over the data.
        normalise: uint8 pixels -> the model's input.
        batch: Instances that are computed together.
        latency: How milliseconds are taken.
        retell: Has a captioner say its own words about a batch, which decide on what it costs; None for other models,
            of whose instances nothing depends on the model.
    """

    draw: Callable[[int], ImageTextBatch]
    normalise: Callable[[Tensor], Tensor]
    batch: int
    latency: LatencyConfig
    retell: Callable[[ClassificationModel, ImageTextBatch], ImageTextBatch] | None = None

    def parts(self, drawn: ImageTextBatch, device: torch.device) -> Iterator[ImageTextBatch]:
        """Of what was drawn, as many together as are computed."""
        for at in range(0, len(drawn), self.batch):
            yield drawn.part(slice(at, at + self.batch)).to(device)


@dataclass(frozen=True)
class Plan:
    """What training asks for.

    Attributes:
        speed_up: The untrimmed model's multiply-accumulates over the trimmed one's.
        slope: Milliseconds that all of them take, where the target is a time.
        full_ms: That the untrimmed model takes.
    """

    speed_up: float
    slope: float = 0.0
    full_ms: float = math.inf


def check_before(targets: Sequence[Target], model: ClassificationModel, max_tokens: int) -> None:
    """Refuses what no text could reach, before anything runs.

    Args:
        targets: Wanted.
        model: As `plan_target` wants it; may be without memory for its weights.
        max_tokens: Length of the longest text.

    Raises:
        UserError: As `check_target`. Times are checked by the stage itself.
    """
    least_L, full_L = _ends(model, _units_up_to(model, max_tokens))
    stripped = _stripped(model)
    for target in targets:
        if target.unit == "GMACs":
            check_target(target, float(least_L.min()), float(full_L.max()), stripped=stripped)
        elif target.unit == "x" and not target.is_full:
            best = int((full_L / least_L).argmax())
            said = f" with a text of {best + 2} tokens"
            check_target(target, float(least_L[best]), float(full_L[best]), said, stripped)


def _units_up_to(model: ClassificationModel, max_tokens: int) -> Units:
    text = torch.arange(1.0, max(2, max_tokens))
    return Units(torch.full_like(text, model.backbone.config.vision.patches), text)


def _ends(model: ClassificationModel, units: Units) -> tuple[Tensor, Tensor]:
    """(B,) GMACs of as little as can be left, and of the untrimmed model; where nothing trims, layers are left out."""
    cost = model.cost_model()
    least = thinnest_macs(cost, units) if model.trimmers is None else cost.at_share(units, 0.0)
    return least / 1e9, cost.full(units) / 1e9


def _stripped(model: ClassificationModel) -> str:
    """How little that is."""
    if model.trimmers is None:
        return "with one layer left in each part"
    if isinstance(model.trimmers, Trimmers) and model.trimmers.policy == SMARTTRIM:
        return EVERYTHING
    return "with all trimmed that this method trims"


def plan_target(
    target: Target,
    model: ClassificationModel,
    typical: Units,
    examples: Examples,
    stage: Stage,
) -> Plan:
    """Which ratio of multiply-accumulates reaches a target; all processes call it together.

    Args:
        target: Wanted.
        model: As training begins with it; the full one where layers are to be left out.
        typical: Units of typical instances.
        examples: To time.
        stage: Its main process measures, the others wait. What was measured stays in its folder, so that training goes
            on after a stop as it began.

    Raises:
        UserError: It cannot be reached.
    """
    if target.is_full:
        return Plan(1.0)
    least, full = (float(each.mean()) for each in _ends(model, typical))
    if target.unit != "ms":
        check_target(target, least, full, stripped=_stripped(model))
        return Plan(target.amount if target.unit == "x" else full / target.amount)

    def measured() -> dict[str, float] | None:
        return _timed_plan(target, model, examples, least / full, stage) if stage.process.is_main else None

    found = together(stage.process, measured, stage.folder)[0]
    assert found is not None
    return Plan(**found)


def _timed_plan(
    target: Target, model: ClassificationModel, examples: Examples, least_share: float, stage: Stage
) -> dict[str, float]:
    path = stage.folder / _FILE
    if path.is_file() and (saved := read_json(path))["fingerprint"] == stage.fingerprint:
        return dict(saved["plan"])
    instances = _instances(model, examples)
    curve = latency_curve(copy.deepcopy(model).eval(), instances, examples.latency)
    on = f" on this machine ({_words(curve.full)})"
    # Only what is out of reach beyond all doubt is refused.
    check_target(target, curve.least.low, curve.full.high, on, _stripped(model))
    if not curve.slope > 0:
        raise UserError(
            f"a target of {target} cannot be reached: trimming makes this model no faster{on}; the highest target is "
            "1.0x, or give a speed-up in multiply-accumulates such as 2.0x"
        )
    share = min(max(curve.share_at(target.amount), least_share), MOST_SHARE)
    plan = Plan(1 / share, curve.slope, curve.full.ms)
    log.info("%s of the untrimmed model's %.4g ms%s: %.4g of its GMACs", target, curve.full.ms, on, share)
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"fingerprint": stage.fingerprint, "plan": asdict(plan), "curve": asdict(curve)})
    return asdict(plan)


def _words(latency: Latency) -> str:
    threads = f", {latency.threads} threads" if latency.device == "cpu" else ""
    return f"{latency.device}{threads}, one instance at a time, median of {latency.rounds}"


def _instances(model: ClassificationModel, examples: Examples) -> list[Instance]:
    """Instances whose untrimmed cost is spread as that of all."""
    batch = examples.draw(candidates(examples.latency))
    full_B = model.cost_model().full(units_of(model.backbone, batch.token_mask)).tolist()
    rows = alike(full_B, full_B, examples.latency.instances)
    return alone(batch, rows, examples.normalise, next(model.parameters()).device)
