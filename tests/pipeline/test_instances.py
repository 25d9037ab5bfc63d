"""What is seen of single instances: spreads by hand, modules that sum to the whole cost, joining, and the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from launch.report.instances import told
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.instances import SHOWN, Instance, Instances, spread, write_instances
from pipeline.models.config import BackboneName
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import Place, units_of
from pipeline.trimming.trimmers import TrimmerConfig
from tests.pipeline.small import scale, small_batch, small_model

MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)
BACKBONES: list[BackboneName] = ["albef", "blip", "meter"]
ROW = {"stage": "trim-statement-2.0x", "method": "smarttrim", "target": 2.0, "task": "statement", "split": "test"}


def trimmed(backbone: BackboneName = "albef", pruning: ElipConfig | None = None) -> ClassificationModel:
    return ClassificationModel(small_model(backbone), MIXED, pruning=pruning).eval()


@torch.no_grad()
def seen(model: ClassificationModel, batch: ImageTextBatch) -> tuple[Instances, list[float]]:
    trimming = model.trimming(batch.token_ids, batch.token_mask)
    interventions = [] if trimming is None else [trimming]
    scores = model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, interventions)
    decisions = {} if trimming is None else trimming.decisions
    macs = model.macs(decisions, units_of(model.backbone, batch.token_mask)).tolist()
    return Instances.of(model, batch, decisions, scores.argmax(1).tolist(), macs), macs


def test_the_spread_by_hand() -> None:
    found = spread({1.0: 1, 0.5: 2, 0.0: 1})
    assert found["std"] == pytest.approx(0.125**0.5)
    assert {name: found[name] for name in ("mean", "low", "lower", "middle", "upper", "high")} == {
        "mean": 0.5, "low": 0.0, "lower": 0.0, "middle": 0.5, "upper": 0.5, "high": 1.0,
    }  # fmt: skip
    assert spread({0.25: 7}) == dict.fromkeys(("mean", "low", "lower", "middle", "upper", "high"), 0.25) | {"std": 0.0}
    hundred = spread({number / 100: 1 for number in range(1, 101)})
    assert [hundred[name] for name in ("low", "lower", "middle", "upper", "high")] == [0.05, 0.25, 0.5, 0.75, 0.95]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("pruning", [None, ElipConfig(depths=(1, 1, 1, 1), ratios=(0.8, 0.5, 0.25))])
def test_modules_sum_to_the_whole_cost(backbone: BackboneName, pruning: ElipConfig | None) -> None:
    model, batch = trimmed(backbone, pruning), small_batch()
    found, macs = seen(model, batch)
    units = units_of(model.backbone, batch.token_mask)
    assert sum(found.modules.values()) == pytest.approx(sum(macs), rel=1e-6)
    assert sum(found.full_modules.values()) == pytest.approx(float(model.full_macs(units).sum()), rel=1e-6)
    assert set(found.modules) == {*found.full_modules, "trimmers"} == {"vision", "text", "fusion", "head", "trimmers"}


def test_what_each_place_keeps_is_counted_by_instance() -> None:
    model, batch = trimmed(), small_batch()
    trimming = model.trimming(batch.token_ids, batch.token_mask)
    assert trimming is not None
    with torch.no_grad():
        model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    found, _ = seen(model, batch)
    words = batch.token_mask.sum(1) - 1
    decision = trimming.decisions["text_1_text"]
    by_hand = [int(kept) / int(there) for kept, there in zip(decision.tokens_B, words, strict=True)]
    shares = found.kept[Place("text", 1, "text", "text")]
    assert sorted(shares.elements()) == pytest.approx(sorted(by_hand))
    assert decision.self_BH is not None
    heads = found.kept[Place("text", 1, "text", "msa")]
    assert sorted(heads.elements()) == pytest.approx(sorted((decision.self_BH.sum(1) / 4).tolist()))
    assert {place.group for place in found.kept if place.part == "fusion"} == {"text", "msa", "mca"}


def test_a_model_that_trims_nothing_keeps_no_account_of_places() -> None:
    found, macs = seen(ClassificationModel(small_model("albef"), None).eval(), small_batch())
    assert found.kept == {} and found.modules == found.full_modules
    assert found.cheapest[0].macs == min(macs) and found.dearest[0].macs == max(macs)


def test_batches_join_in_any_order() -> None:
    model = trimmed()
    parts = [seen(model, small_batch(seed=seed)) for seed in range(3)]
    forth, back = Instances(), Instances()
    for part, _ in parts:
        forth.join(part)
    for part, _ in parts[::-1]:
        back.join(part)
    assert forth.kept == back.kept and forth.modules == pytest.approx(back.modules)
    macs = sorted(cost for _, costs in parts for cost in costs)
    for found in (forth, back):
        assert [each.macs for each in found.cheapest] == macs[:SHOWN]
        assert [each.macs for each in found.dearest] == macs[::-1][:SHOWN]
    assert all(sum(shares.values()) == len(macs) for shares in forth.kept.values())


def test_the_file_says_what_was_seen_and_the_report_reads_it(tmp_path: Path) -> None:
    found, macs = seen(trimmed(), small_batch())
    path = tmp_path / "instances" / "t-test.json"
    write_instances(path, {**ROW, "samples": 4, "full_gmacs": 0.5}, found, macs)
    read, labels = told(json.loads(path.read_text()), path.parent), small_batch().labels.tolist()
    assert (read.label, read.split, len(read.gmacs)) == ("2.0x", "test", 4)
    assert sum(read.gmacs) / 4 == pytest.approx(sum(read.modules.values()), rel=1e-4)
    assert [each["gmacs"] for each in read.shown["cheapest"]] == pytest.approx(sorted(cost / 1e9 for cost in macs)[:3])
    for each in (*read.shown["cheapest"], *read.shown["dearest"]):
        with Image.open(path.parent / each["image"]) as image:
            assert image.size == (each["width"], each["height"]) == (256, 256)
        assert each["said"] in ("true", "false") and each["text"] in small_batch().texts
        (label,) = {bool(one) for one, text in zip(labels, small_batch().texts, strict=True) if text == each["text"]}
        assert each["right"] == str(label).lower()


def test_a_pair_of_pictures_is_shown_side_by_side(tmp_path: Path) -> None:
    pixels = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    pixels[1] = 255
    shown = Instance(macs=1e9, key="k", text="both are dark", said="false", pixels=pixels)
    found = Instances(modules={"vision": 1e9}, full_modules={"vision": 1e9}, cheapest=[shown])
    path = tmp_path / "t-test.json"
    write_instances(path, {**ROW, "samples": 1, "full_gmacs": 1.0}, found, [1e9])
    (entry,) = json.loads(path.read_text())["cheapest"]
    with Image.open(tmp_path / entry["image"]) as image:
        assert image.size == (512, 256)
        assert (image.getpixel((10, 10)), image.getpixel((500, 10))) == ((0, 0, 0), (255, 255, 255))


def test_padding_changes_nothing() -> None:
    model, batch = trimmed(), small_batch()
    other = replace(batch, token_ids=batch.token_ids.masked_fill(~batch.token_mask, 7))
    assert seen(model, batch)[0].kept == seen(model, other)[0].kept
