"""SmartTrim's baselines: equal cost, masked as packed, gradients, what each decides by, and exports that load again."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.exports import describe_method, load_classification_model, method_of
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.models.schedule import InBlock, Step, Streams
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.ftkd import TaughtClassification
from pipeline.trim_config import TrimConfig
from pipeline.trimming.calibrate import calibrate
from pipeline.trimming.cost import Units, solve_share, units_of
from pipeline.trimming.fixed import decay_rate, random_ranks
from pipeline.trimming.ftkd import FtkdConfig, LayerMap, Layers, begin_student, choose_layers, teacher_layer
from pipeline.trimming.importance import HeadProbe, head_importance, order_heads
from pipeline.trimming.methods import HeadBaselineConfig, MethodName, MethodsConfig, TokenBaselineConfig, what_counts
from pipeline.trimming.smarttrim import MaskedTrimming, PackedTrimming, threshold
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import TrimmerConfig, Trimmers
from pipeline.worker import parse
from tests.pipeline.small import scale, small_batch, small_model

BACKBONES: tuple[BackboneName, ...] = ("albef", "blip", "meter")
HEADS: tuple[MethodName, ...] = ("head_random", "grad_layer", "grad_all")
TOKENS: tuple[MethodName, ...] = ("local", "random")
VISION: tuple[MethodName, ...] = ("trips", "evit", "tome")
SCORED = (*TOKENS, *HEADS)
TRIMMERS = TrimmerConfig(keep_bias=0.1, last_std=0.5, width_share=0.1)
ROWS = 5


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_of(method: MethodName, backbone: BackboneName = "albef", seed: int = 0, **more: Any) -> ClassificationModel:
    """A model that the method trims, its order of heads settled by chance or by its own gradients."""
    config = MethodsConfig(method=method, **more)
    torch.manual_seed(seed)
    own = small_model(backbone, seed, depth=6)
    model = ClassificationModel(own, config.reduction or TRIMMERS, config.policy).eval()
    if method in HEADS:
        assert isinstance(model.trimmers, Trimmers)
        importance = head_importance(ClassificationModel(own, None), [arguments(small_batch(8))])
        order_heads(model.trimmers, method, seed, importance)  # type: ignore[arg-type]
    return model


def arguments(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    return scale(batch.pixels), batch.token_ids, batch.token_mask


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("heads", ["all", "trimmers"])
@pytest.mark.parametrize("method", SCORED)
def test_masked_and_packed_execution_agree(method: MethodName, heads: Any, backbone: BackboneName) -> None:
    model = model_of(method, backbone, tokens=TokenBaselineConfig(heads=heads), heads=HeadBaselineConfig(tokens=heads))
    batch = small_batch(ROWS)
    assert isinstance(model.trimmers, Trimmers)
    model.trimmers.set_share(0.55)
    masked = model.trimming(batch.token_ids, batch.token_mask, threshold)
    packed = model.trimming(batch.token_ids, batch.token_mask)
    assert isinstance(masked, MaskedTrimming) and isinstance(packed, PackedTrimming)
    inputs = arguments(batch)
    torch.testing.assert_close(model.classify(*inputs, [masked]), model.classify(*inputs, [packed]))
    units = units_of(model.backbone, batch.token_mask)
    macs = model.macs(masked.decisions, units)
    torch.testing.assert_close(macs, model.macs(packed.decisions, units))
    assert (macs < model.full_macs(units)).all()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("target", [1.3, 1.5])
@pytest.mark.parametrize("method", [*SCORED, *VISION])
def test_every_method_costs_what_the_target_says(method: MethodName, target: float, backbone: BackboneName) -> None:
    model, batch = model_of(method, backbone), small_batch(64)
    units, cost = units_of(model.backbone, batch.token_mask), model.cost_model()
    assert model.trimmers is not None
    share = solve_share(cost, units, target)
    assert float(cost.full(units).mean() / cost.at_share(units, share).mean()) == pytest.approx(target, rel=0.03)
    model.trimmers.set_share(share)

    def measure() -> float:
        return float(model.cost_shares(*arguments(batch)).mean())

    if model.trimmers.learned:
        assert isinstance(model.trimmers, Trimmers)
        calibrate(model.trimmers, measure, 1 / target)
    assert 1 / measure() == pytest.approx(target, rel=0.03)


@pytest.mark.parametrize("method", ["random", *HEADS, *VISION])
def test_what_is_not_learned_costs_what_was_said_before(method: MethodName) -> None:
    model, batch = model_of(method, heads=HeadBaselineConfig(tokens="all")), small_batch(9)
    assert model.trimmers is not None
    units = units_of(model.backbone, batch.token_mask)
    for share in (0.3, 0.62, 0.9, 1.0):
        model.trimmers.set_share(share)
        trimming = model.trimming(batch.token_ids, batch.token_mask)
        assert trimming is not None
        model.classify(*arguments(batch), [trimming])
        said, found = model.cost_model().at_share(units, share), model.macs(trimming.decisions, units)
        torch.testing.assert_close(found, said, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", VISION)
def test_reduced_pictures_cost_what_torchs_flop_counter_counts(method: MethodName, backbone: BackboneName) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = model_of(method, backbone), small_batch(1, seed=3)
    assert model.trimmers is not None
    model.trimmers.set_share(0.6)
    length = int(batch.token_mask.sum())
    ids, mask = batch.token_ids[:, :length], batch.token_mask[:, :length]
    trimming = model.trimming(ids, mask)
    assert trimming is not None
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.classify(scale(batch.pixels), ids, mask, [trimming])
    said = model.macs(trimming.decisions, units_of(model.backbone, mask))
    # A row of one query is a product that the counter knows; merging's sizes and rows differ by a few.
    assert counter.get_total_flops() == pytest.approx(2 * float(said), rel=0.01)


@pytest.mark.parametrize("method", [*SCORED, *VISION])
def test_a_step_reaches_backbone_head_and_trimmers(method: MethodName) -> None:
    model, batch = model_of(method).train(), small_batch(8)
    distill = 0.0 if method in VISION else 1.0
    task = ClassificationTask(
        model, scale, 1.5, SmartTrimConfig(distill_weight=distill), units_of(model.backbone, batch.token_mask)
    )
    task.before_update(0.9)
    losses = task.losses(model, batch, 0.3)
    losses.total.backward()
    assert ("cost" in losses.named) == (method in ("local", *HEADS))
    assert model.trimmers is not None and model.trimmers.share == task.curriculum.share < 1
    for name, parameter in [*model.trimmers.named_parameters(), *model.cls_head.named_parameters()]:
        assert parameter.grad is not None, name
        # A key's bias adds the same to every score and falls out; a query's does not.
        assert parameter.grad.abs().max() > 0, name
    first = model.backbone.visual_encoder.patch_embed.proj.weight
    assert first.grad is not None and first.grad.abs().max() > 0
    assert 0 < float(losses.scalars["cost_share"]) < 1.05


@pytest.mark.parametrize("method", [*SCORED, *VISION])
def test_an_export_loads_again_and_answers_alike(method: MethodName, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model, batch = model_of(method), small_batch(4)
    assert model.trimmers is not None
    model.trimmers.set_share(0.5)
    described = {"kind": "statement", "model": asdict(model.backbone.config), "target": 2.0}
    described |= describe_method(model, method)
    export_weights(tmp_path / "export", model.state_dict(), json.loads(json.dumps(described)))
    loaded, found = load_classification_model(tmp_path / "export")
    assert method_of(found) == method
    answers = []
    for each in (model, loaded):
        trimming = each.trimming(batch.token_ids, batch.token_mask)
        assert trimming is not None
        answers.append(each.classify(*arguments(batch), [trimming]))
    torch.testing.assert_close(answers[0], answers[1])


def test_tokens_are_drawn_by_the_instance_and_anew_in_training() -> None:
    model, batch = model_of("random"), small_batch(6)
    assert isinstance(model.trimmers, Trimmers)
    ranks = model.trimmers.ranks(batch.token_ids, batch.token_mask)
    alone = random_ranks(batch.token_ids[2:3, :9], batch.token_mask[2:3, :9], 16, fresh=False)
    torch.testing.assert_close(alone["image"][0], ranks["image"][2])
    torch.testing.assert_close(alone["text"][0], ranks["text"][2])
    assert not torch.equal(ranks["image"][0], ranks["image"][1])
    words = int(batch.token_mask[2].sum()) - 1
    there = ranks["text"][2][1 : 1 + words].sort().values
    torch.testing.assert_close(there, (torch.arange(words) + 0.5) / words)
    model.train()
    again = [model.trimmers.ranks(batch.token_ids, batch.token_mask)["image"] for _ in range(2)]
    assert not torch.equal(again[0], again[1])


def test_each_layer_keeps_the_same_part_of_what_the_one_before_kept() -> None:
    rate = decay_rate(0.5, 6)
    assert sum(rate**layer for layer in range(1, 7)) / 6 == pytest.approx(0.5)
    model, batch = model_of("random", "blip"), small_batch(3)
    assert isinstance(model.trimmers, Trimmers)
    model.trimmers.set_share(0.5)
    trimming = model.trimming(batch.token_ids, batch.token_mask)
    assert isinstance(trimming, PackedTrimming)
    model.classify(*arguments(batch), [trimming])
    kept = [int(trimming.decisions[f"vision_{layer}_image"].tokens_B[0]) for layer in range(6)]
    assert kept == [int(rate**layer * 16 + 0.5) for layer in range(1, 7)]
    # BLIP's fusion begins from all words; where nobody looks at the text alone nothing is drawn of that.
    assert [name for name in trimming.decisions if name.endswith("_text")] == ["fusion_0_text", "fusion_1_text"]
    words = batch.token_mask.sum(1) - 1
    left = trimming.decisions["fusion_0_text"].tokens_B
    assert left.tolist() == (decay_rate(0.5, 2) * words + 0.5).floor().tolist()


class Scaled:
    """Multiplies one head's context, to see what the loss says."""

    def __init__(self, name: str, head: int, factor: float) -> None:
        self.wanted, self.head, self.factor = name, head, factor

    def before(self, step: Step, streams: Streams) -> tuple[Streams, dict[str, InBlock]]:
        wishes = {}
        for advance in step.advances:
            if self.wanted == f"{step.part}_{step.layer}_{advance.stream}":
                ones = torch.ones(len(streams[advance.stream].x), 4)
                ones[:, self.head] = self.factor
                wishes[advance.stream] = InBlock(cross_BH=ones)
        return streams, wishes


def test_a_heads_importance_is_the_slope_of_the_loss_on_the_models_own_answers() -> None:
    model, batch = ClassificationModel(small_model("albef"), None), small_batch(3)
    found = head_importance(model, [arguments(batch.part(slice(0, 2))), arguments(batch.part(slice(2, 3)))])
    labels = model.classify(*arguments(batch), []).argmax(1)

    def losses(factor: float) -> Tensor:
        scores = model.classify(*arguments(batch), [Scaled("fusion_1_text", 2, factor)])
        return torch.nn.functional.cross_entropy(scores, labels, reduction="none")

    with torch.no_grad():
        slopes = (losses(1 + 1e-5) - losses(1 - 1e-5)) / 2e-5
    assert float(found["fusion_1_text/cross"][2]) == pytest.approx(float(slopes.abs().sum()), rel=1e-5)
    assert len(found) == 4 + 2 + 2 * 2  # vision, text, and two kinds in each layer of fusion
    probe = HeadProbe()
    torch.testing.assert_close(model.classify(*arguments(batch), [probe]), model.classify(*arguments(batch), []))


def test_by_layer_each_attention_loses_alike_and_over_all_the_least_important_go() -> None:
    importance: dict[str, Tensor] = {}
    for method in ("grad_layer", "grad_all"):
        model = model_of(method, heads=HeadBaselineConfig(tokens="all"))  # type: ignore[arg-type]
        trimmers = model.trimmers
        assert isinstance(trimmers, Trimmers)
        names = [name for name, _ in trimmers.ranked()]
        importance = {name: torch.arange(4.0) + 10 * number for number, name in enumerate(names)}
        order_heads(trimmers, method, 0, importance)  # type: ignore[arg-type]
        trimmers.set_share(0.5)
        kept = {name: (heads.rank_H <= 0.5).int().tolist() for name, heads in trimmers.ranked()}
        total = sum(map(sum, kept.values()))
        assert abs(total - 2 * len(names)) <= 1
        if method == "grad_layer":
            assert all(each in ([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]) for each in kept.values())
        else:
            assert [sum(each) for each in kept.values()] == [0] * (len(names) // 2) + [4] * (len(names) // 2)


def test_trips_is_asked_by_the_text_and_evit_is_not() -> None:
    batch = small_batch(4)
    other = replace(batch, token_ids=batch.token_ids.flip(0), token_mask=batch.token_mask.flip(0))
    for method, same in (("trips", False), ("evit", True)):
        model = model_of(method)  # type: ignore[arg-type]
        assert model.trimmers is not None
        model.trimmers.set_share(0.5)
        seen = []
        for each in (batch, other):
            trimming = model.trimming(each.token_ids, each.token_mask)
            assert trimming is not None
            model.classify(*arguments(each), [trimming])
            seen.append(trimming.decisions["fusion_0_text"])
            seen.append(trimming.pruning.selections[2])  # type: ignore[union-attr]
        assert torch.equal(seen[1].kept_BK, seen[3].kept_BK) == same


def typical(lengths: int = 8) -> Units:
    return Units(torch.full((4,), 64), torch.full((4,), lengths))


def demo_sizes(backbone: BackboneName = "albef") -> ModelConfig:
    """Those of configs/runs/demo.yaml."""
    text = TextConfig(vocab_size=50, width=96, text_layers=3, fusion_layers=3, heads=4, max_positions=28, dropout=0.0)
    vision = VisionConfig(height=64, width_px=64, patch=8, width=96, depth=12, heads=4)
    return ModelConfig(backbone=backbone, vision=vision, text=text, embed=64)


def demo_model() -> ClassificationModel:
    from pipeline.models.build import build_model

    torch.manual_seed(0)
    return ClassificationModel(build_model(demo_sizes()), None).eval()


@pytest.mark.parametrize("target", [1.5, 2.0, 2.5])
def test_a_student_costs_what_the_target_says(target: float) -> None:
    from pipeline.models.build import build_model

    teacher = demo_model()
    layers = choose_layers(teacher.cost_model(), typical(), target)
    whole = teacher.backbone.config
    student = ClassificationModel(build_model(layers.cut(whole)), None, whole=whole)
    assert Layers.of(student.backbone.config) == layers
    torch.testing.assert_close(student.full_macs(typical()), teacher.full_macs(typical()))
    ratio = float(student.full_macs(typical()).mean() / student.macs({}, typical()).mean())
    assert ratio == pytest.approx(target, rel=0.03)


def test_a_student_that_is_no_smaller_is_its_teacher() -> None:
    for backbone in BACKBONES:
        teacher, student = (ClassificationModel(small_model(backbone, seed), None).eval() for seed in (0, 1))
        begin_student(student, teacher, LayerMap(student.backbone, teacher.backbone))
        batch = arguments(small_batch(3))
        torch.testing.assert_close(student.classify(*batch, []), teacher.classify(*batch, []))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_student_begins_with_layers_of_the_same_depth_and_learns_from_what_they_see(backbone: BackboneName) -> None:
    from pipeline.models.build import build_model

    teacher = ClassificationModel(small_model(backbone, depth=6), None)
    layers = Layers(vision=3, text=1, fusion=1)
    whole = teacher.backbone.config
    student = ClassificationModel(build_model(layers.cut(whole)), None, whole=whole)
    begin_student(student, teacher, LayerMap(student.backbone, teacher.backbone))
    own, other = student.backbone.visual_encoder.blocks, teacher.backbone.visual_encoder.blocks
    for layer in range(3):
        same = other[teacher_layer(layer, 3, 6)].state_dict()
        assert all(torch.equal(tensor, same[name]) for name, tensor in own[layer].state_dict().items())
    batch = small_batch(6)
    task = TaughtClassification(
        student, teacher, scale, 2.0, FtkdConfig(), units_of(teacher.backbone, batch.token_mask)
    )
    losses = task.losses(student, batch, 0.5)
    assert set(losses.named) == {"task", "divergence", "hidden", "attention"}
    assert all(float(value.detach()) > 0 for value in losses.named.values())
    losses.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    query = student.backbone.visual_encoder.blocks[0].attn.qkv.weight.grad  # type: ignore[union-attr]
    assert query is not None and query.abs().max() > 0


def test_a_student_at_its_teachers_side_is_at_no_distance() -> None:
    teacher, student = (ClassificationModel(small_model("meter", seed), None).eval() for seed in (0, 1))
    begin_student(student, teacher, LayerMap(student.backbone, teacher.backbone))
    batch = small_batch(4)
    task = TaughtClassification(
        student, teacher, scale, 1.5, FtkdConfig(), units_of(teacher.backbone, batch.token_mask)
    )
    named = task.losses(student, batch, 0.5).named
    assert all(abs(float(named[name].detach())) < 1e-9 for name in ("divergence", "hidden", "attention"))


def test_targets_out_of_reach_are_refused_with_the_highest_that_is_not() -> None:
    model, batch = model_of("grad_all", heads=HeadBaselineConfig(tokens="all")), small_batch(4)
    with pytest.raises(UserError, match=r"highest target is 1\.\d"):
        solve_share(model.cost_model(), units_of(model.backbone, batch.token_mask), 3.0)
    with pytest.raises(UserError, match=r"one layer in each part .* highest target is \d"):
        choose_layers(demo_model().cost_model(), typical(), 50.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "ftkd", "targets": [2.0]}, "must hold 1.0"),
        ({"heads": {"instances": 0}}, "trim.heads.instances=0"),
        ({"ftkd": {"logits_weight": 0, "hidden_weight": 0, "attention_weight": 0}}, "above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(TrimConfig, {"loop": {"samples": 8, "global_batch": 4}, **values})


def test_layers_that_a_tower_does_not_have_are_refused() -> None:
    from pipeline.trimming.vision_only import ReductionConfig

    with pytest.raises(UserError, match="numbered from 0 to 5"):
        ClassificationModel(small_model("albef", depth=6), ReductionConfig(name="evit", layers=(2, 9)))


def test_only_a_methods_own_settings_count() -> None:
    def counted(target: str = "2.0x", **more: Any) -> dict[str, Any]:
        config = parse(TrimConfig, {"loop": {"samples": 8, "global_batch": 4}, **more})
        return what_counts(asdict(config), Target.parse(target))

    assert counted(method="evit") == counted(method="evit", trips={"layers": [1]})
    assert counted(method="evit") != counted(method="evit", evit={"layers": [1]})
    assert counted(method="evit") != counted(method="tome")
    full = counted("1.0x", method="evit")
    assert full == counted("1.0x", smarttrim={"cost_weight": 1}) != counted("1.0x", head_scale=2)
    longer = {"latency": {"seconds": 30}}
    assert counted(**longer) == counted() and counted("9 ms", **longer) != counted("9 ms")
