"""Whole stages under ZeRO 3, which gathers weights layer by layer, give what the plain engine gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import load_weights
from pipeline.process import Process
from pipeline.worker import run_job
from tests.pipeline.small import OTHER_BACKBONES
from tests.pipeline.test_train import data, job_of, losses, pretrained  # noqa: F401 (fixtures)
from tests.pipeline.zero import NOTHING_KEPT_WHOLE

ZERO_3 = {
    "engine.name": "deepspeed",
    "engine.zero_stage": 3,
    "engine.recompute": True,
    "engine.deepspeed_json": NOTHING_KEPT_WHOLE,
}


def same(folder: Path, expected: Path) -> None:
    assert losses(folder) == pytest.approx(losses(expected), rel=1e-4)
    found, wanted = (load_weights(place / "export")[0] for place in (folder, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["albef", *OTHER_BACKBONES])
def test_pretraining_with_pruning_and_recomputation(
    backbone: str,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    small: dict[str, Any] = {
        f"model.{key}": value for key, value in {"backbone": backbone, **OTHER_BACKBONES.get(backbone, {})}.items()
    }
    small["pretrain.loop.samples"] = 24
    for name, engine in {"plain": {}, "split": ZERO_3}.items():
        run_job(job_of(data, tmp_path / name, "pretrain", run={**small, **engine}), Process())
    same(tmp_path / "split", tmp_path / "plain")


def test_trimming(data: Path, pretrained: Path, tmp_path: Path) -> None:  # noqa: F811
    more = {"target": 1.5, "backbone": str(pretrained / "export")}
    scored = {"trim.loop.samples": 24, "trim.validation": {"split": "test", "every_steps": 1}}
    best = [
        run_job(job_of(data, tmp_path / name, "trim", run={**scored, **engine}, **more), Process())["best"]
        for name, engine in {"plain": {}, "split": ZERO_3}.items()
    ]
    assert best[0] == best[1]
    same(tmp_path / "split", tmp_path / "plain")
