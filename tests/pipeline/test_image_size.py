"""Fine-tuning at another image size than pre-training's: interpolated positions, exact where nothing changes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.checkpoint import load_weights
from pipeline.exports import load_backbone
from pipeline.models.config import BackboneName
from pipeline.param_groups import scaled_groups
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.trim_config import TrimConfig
from pipeline.trimmed_model import TrimmedModel
from pipeline.trimming.methods import what_counts
from pipeline.trimming.target import Target
from pipeline.weights.sizes import POSITIONS
from pipeline.worker import parse, run_job
from tests.pipeline.evaluation.exports import export
from tests.pipeline.small import small_albef
from tests.pipeline.test_train import data, job_of, losses, pretrained
from tests.pipeline.test_trim_stages import picture

__all__ = ["data", "pretrained"]  # fixtures


def trimmed(data: Path, pretrained: Path, folder: Path, **run: Any) -> dict[str, Any]:
    brief = {"trim.loop.samples": 24, "trim.smarttrim": {"trimmers": {"width_share": 0.1}, "calibrate": 64}}
    run = {**brief, **{f"trim.{key}": value for key, value in run.items()}}
    given = {"target": 1.4, "backbone": str(pretrained / "export"), "run": run}
    counts: dict[str, Any] = run_job(job_of(data, folder, "trim", **given), Process())
    return counts


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_positions_are_interpolated_and_nothing_else_changes(backbone: BackboneName, tmp_path: Path) -> None:
    tensors, _ = load_weights(export(tmp_path / "e", backbone))
    for side in (None, 32):
        same = load_backbone(tmp_path / "e", side).state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in same.items())
    model = load_backbone(tmp_path / "e", 48)
    assert model.config.vision.grid == (6, 6)
    old_1PD, new_1PD = tensors[POSITIONS], model.state_dict()[POSITIONS]
    grid = old_1PD[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, (6, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(1, 36, -1)
    torch.testing.assert_close(new_1PD, torch.cat([old_1PD[:, :1], wanted], 1), atol=0, rtol=0)
    others = model.state_dict().items()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in others if name != POSITIONS)


def test_the_same_size_trains_exactly_as_none(data: Path, pretrained: Path, tmp_path: Path) -> None:
    trimmed(data, pretrained, tmp_path / "plain")
    trimmed(data, pretrained, tmp_path / "named", image_size=32)
    assert losses(tmp_path / "named") == losses(tmp_path / "plain")
    weights = [(tmp_path / name / "export/model.safetensors").read_bytes() for name in ("named", "plain")]
    assert weights[0] == weights[1]


def test_a_stage_at_a_higher_resolution_trains_exports_is_evaluated_and_drawn(
    data: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trimmed(data, pretrained, tmp_path / "trim", image_size=48)
    said = "pictures of 48 x 48 instead of 32 x 32 pixels: the positions of 4 x 4 patches are interpolated to 6 x 6"
    assert said in caplog.text
    described = read_json(tmp_path / "trim/export/config.json")
    assert (described["model"]["vision"]["height"], described["model"]["vision"]["width_px"]) == (48, 48)
    assert (described["loader"]["height"], described["loader"]["width"]) == (48, 48)
    given = {"pretrained": str(pretrained / "export"), "trimmed": {"t": str(tmp_path / "trim/export")}}
    rows = run_job(job_of(data, tmp_path / "evaluate", "evaluate", **given), Process())["rows"]
    row = next(row for row in rows if row["metric"] == "accuracy")
    assert row["full_gmacs"] / row["gmacs"] == pytest.approx(1.4, rel=0.15)
    pixels_and_heads = next(row for row in rows if row["metric"] == "R@10")
    assert row["full_gmacs"] > 1.5 * pixels_and_heads["gmacs"], "the pre-trained model still takes 32 x 32 pixels"
    run_job(job_of(data, tmp_path / "survivors", "survivors", **given), Process())
    drawn = json.loads((tmp_path / "survivors/survivors.json").read_text())
    grids = {tuple(stage["grid"]) for one in drawn[0]["sentences"] for stage in one["steps"]}
    assert grids == {(4, 4), (6, 6)}
    model = TrimmedModel.from_pretrained(tmp_path / "trim/export")
    assert model.predict([picture()], ["there is a red circle"])[0].full_gmacs == pytest.approx(
        row["full_gmacs"], rel=0.1
    )


def test_a_size_of_broken_patches_is_refused(data: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trim\.image_size=50 must be a multiple of model\.vision\.patch=8; try 48"):
        trimmed(data, pretrained, tmp_path / "t", image_size=50)


def test_parts_learn_at_their_own_rates(data: Path, pretrained: Path, tmp_path: Path) -> None:
    model = small_albef()
    groups = scaled_groups(model, {"text_encoder": 3.0, "text_encoder.encoder": 5.0, "visual_encoder": 0.5})
    rates = {id(p): group.lr_scale for group in groups for p in group.params}
    assert len(rates) == sum(len(group.params) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        wanted = 5.0 if name.startswith("text_encoder.encoder.") else 3.0 if name.startswith("text_encoder.") else 1.0
        assert rates[id(parameter)] == (0.5 if name.startswith("visual_encoder.") else wanted), name
    trimmed(data, pretrained, tmp_path / "slow", lr_scales={"visual_encoder": 1e-9}, optimizer={"weight_decay": 0.0})
    before, _ = load_weights(pretrained / "export")
    after, _ = load_weights(tmp_path / "slow/export")
    moved = {name: float((after[f"backbone.{name}"] - tensor).abs().max()) for name, tensor in before.items()}
    assert max(moved[name] for name in moved if name.startswith("visual_encoder.")) < 1e-8
    assert max(moved.values()) > 1e-5
    line = read_metrics(tmp_path / "slow/metrics.jsonl")[0]
    assert line["lr/visual_encoder"] == pytest.approx(1e-9 * line["lr"])
    with pytest.raises(UserError, match=r"trim\.lr_scales names 'vision', which albef has not"):
        trimmed(data, pretrained, tmp_path / "t", lr_scales={"vision": 2.0})
    with pytest.raises(UserError, match=r"trim\.lr_scales\.visual_encoder=0\.0 must be above 0"):
        parse(TrimConfig, {"loop": {"samples": 8, "global_batch": 8}, "lr_scales": {"visual_encoder": 0.0}})


def test_keys_that_say_nothing_leave_finished_stages_finished() -> None:
    plain = {"task": "statement", "targets": [1.0], "method": "smarttrim", "image_size": None, "lr_scales": {}}
    plain["validation"] = {"every_steps": 0, "split": "val"}
    full = Target.parse(1.0)
    assert what_counts(plain, full) == {"task": "statement"}
    assert what_counts({**plain, "image_size": 48}, full) == {"task": "statement", "image_size": 48}
