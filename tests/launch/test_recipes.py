"""The recipes of configs/pretrain under Ray and DeepSpeed, as a user starts them, with small data put in."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from data_prep.files import read_json
from launch import preflight
from launch.cli import main
from launch.config import RunConfig
from launch.flops import PUBLISHED_WORDS
from launch.graph import read_status
from launch.reading import read_config
from launch.recipes import find_recipe
from pipeline.progress import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = ["albef", "blip", "meter", "clip"]
SPLITS = json.dumps({"train": 64, "val": 16, "test": 16, "unseen": 0})
ON_A_CPU = ["--launcher", "ray", "--engine.name", "deepspeed", "--cluster.gpus_per_worker", "0"]


def recipe(backbone: str, size: str) -> list[str]:
    return [f"configs/models/{backbone}_{size}.yaml", f"configs/pretrain/{backbone}_4m.yaml"]


def small(backbone: str, batch: int) -> list[str]:
    """What any user of a recipe changes for small data on a small machine."""
    words = ["--pretrain.loop.global_batch", str(batch), "--pretrain.loop.samples", str(4 * batch)]
    words += ["--pretrain.loop.log_every", "1", "--loader.streams", "2", "--loader.workers", "0"]
    # RoBERTa's tokenizer pads with 1, one that is trained here with 0.
    return [*words, *(["--model.text.pad_id", "0"] if backbone == "meter" else [])]


def base(backbone: str, shards: Path, out: Path) -> list[str]:
    words = [*recipe(backbone, "base"), *ON_A_CPU, *small(backbone, batch=2)]
    words += ["--cluster.workers", "1", "--cluster.cpus_per_worker", "2"]
    # The published size, whatever the few words of the small data.
    words += ["--model.text.vocab_size", str(PUBLISHED_WORDS[backbone])]
    return [*words, "--checkpoint.keep_every_steps", "3", "--data.root", str(shards), "--out", str(out)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    words = ["--sizes", SPLITS, "--image_size", "64", "--shard_samples", "20", "--workers", "1"]
    assert main(["shard", "shapes", "--out", str(folder), *words]) == 0
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A run folder that does not stay: gigabytes."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def trimline(command: str, words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "launch", command, *words, "--json"]
    return subprocess.Popen(
        started, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(run: subprocess.Popen[str]) -> None:
    """Kills a command, and waits until all that it has started is gone with the memory that it had."""
    below = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    _, left = psutil.wait_procs(below, timeout=30)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=30)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_small_data_and_a_cpu_can_be_put_into_each_recipe(backbone: str, shards: Path, tmp_path: Path) -> None:
    words = base(backbone, shards, tmp_path / "run")
    config = read_config(RunConfig, [find_recipe(name) for name in words[:2]], words[2:])
    assert (config.pretrain.loop.steps, config.engine.name, config.launcher) == (4, "deepspeed", "ray")
    assert config.pretrain.pruning.method == "elip" and config.model.vision.width == 768
    if psutil.disk_usage(str(tmp_path)).free > preflight.needed_bytes(config) and len(os.sched_getaffinity(0)) >= 2:
        preflight.check(config, tmp_path)


@pytest.mark.parametrize("task", ["captioning", "vqa_generative"])
def test_a_task_laid_over_a_recipe_leaves_its_model_as_it_is(task: str) -> None:
    over = find_recipe(f"configs/tasks/{task}.yaml")
    files, words = [find_recipe(name) for name in recipe("blip", "base")], ["--data.root", "data"]
    alone, laid = (read_config(RunConfig, [*files, *more], words) for more in ([], [over]))
    assert (laid.model, laid.loader, laid.tokenizer) == (alone.model, alone.loader, alone.tokenizer)
    drawn = [find_recipe("configs/runs/demo.yaml"), find_recipe("configs/tasks/drawn_blip.yaml"), over]
    demo = read_config(RunConfig, drawn, words)
    assert (demo.trim.task, demo.model.backbone, demo.model.text.fusion_layers) == (task, "blip", 0)
    assert demo.model.text.max_positions >= (demo.trim.max_tokens or 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_base_size_recipe_takes_three_steps_is_killed_and_takes_the_fourth(
    backbone: str, shards: Path, out: Path
) -> None:
    words, stage = base(backbone, shards, out), out / "stages" / "pretrain"
    first = trimline("pretrain", words)
    try:
        while not (stage / "checkpoints" / "step_00000003" / "COMPLETE").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        assert [line["step"] for line in read_metrics(stage / "metrics.jsonl")][:3] == [1, 2, 3]
    finally:
        kill(first)
    assert not (stage / "result.json").exists()
    second = trimline("pretrain", words)
    printed, errors = second.communicate()
    assert second.returncode == 0, errors
    assert json.loads(printed)["stages"] == {"shard": "skipped", "pretrain": "done"}
    assert "going on from" in (stage / "log.txt").read_text()
    assert f"step_{3:08d}" in (stage / "log.txt").read_text()
    lines = list(read_metrics(stage / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(0 < line["loss"] < 100 and line["grad_norm"] > 0 for line in lines)
    assert [line["restarts"] for line in lines] == [0, 0, 0, 1]
    (manifest,) = stage.glob("checkpoints/step_00000004/manifest.json")
    assert read_json(manifest)["layout"] == {"engine": "deepspeed", "workers": 1, "zero_stage": 0}
    assert (stage / "export" / "model.safetensors").stat().st_size > 4 * 120e6
    print(f"{backbone}: {[round(line['memory_gib'], 1) for line in lines]} GiB, {lines[-1]['seconds']} s")


TRIMMED = ["--trim.targets", "[1.5]", "--trim.loop.samples", "32", "--trim.loop.global_batch", "8"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backbone", ["meter", "blip", "clip"])
def test_a_tiny_backbone_goes_from_shards_through_two_workers_to_the_trim_stage(backbone: str, out: Path) -> None:
    words = [*recipe(backbone, "tiny"), *ON_A_CPU, *small(backbone, batch=8), "--cluster.workers", "2"]
    words += ["--data.name", "shapes", "--data.image_size", "64", "--data.sizes", SPLITS, "--out", str(out)]
    for side in ("loader.height", "loader.width", "model.vision.height", "model.vision.width_px"):
        words += [f"--{side}", "64"]
    trims = backbone != "clip"
    if trims:
        words += [*TRIMMED, "--trim.loop.log_every", "1", "--evaluate.statement_splits", "[test]"]
    run = trimline("trim" if trims else "pretrain", words)
    printed, errors = run.communicate()
    assert run.returncode == 0, errors
    stages: dict[str, Any] = json.loads(printed)["stages"]
    wanted = ["shard", "pretrain", *(["trim-statement-1.5x"] if trims else [])]
    evaluated = ["evaluate-trim-statement-1.5x"] if trims else []
    assert stages == dict.fromkeys([*wanted, *evaluated], "done")
    result = read_json(out / "stages" / "pretrain" / "result.json")
    assert result["update"].startswith("an update: 8 samples = 2 workers x 4") and result["steps"] == 4
    for stage in wanted[1:]:
        assert read_status(out / "stages" / stage)["state"] == "done"
        assert (out / "stages" / stage / "export" / "model.safetensors").exists()
        assert len(list(read_metrics(out / "stages" / stage / "metrics.jsonl"))) == 4
    if trims:
        answers_packed(out / "stages" / wanted[-1] / "export", out)


def answers_packed(export: Path, folder: Path) -> None:
    """`trimline predict` answers from a raw picture and texts of unlike lengths, for fewer multiply-accumulates."""
    Image.effect_noise((80, 60), 90).convert("RGB").save(folder / "picture.png")
    texts = ["there is a red circle", "a square", "the small green triangle is left of the large blue star"]
    words = [str(export), "--image", str(folder / "picture.png")]
    asked = trimline("predict", [*words, *(word for text in texts for word in ("--text", text))])
    printed, errors = asked.communicate()
    assert asked.returncode == 0, errors
    said = json.loads(printed)["predictions"]
    assert [answer["text"] for answer in said] == texts
    for answer in said:
        assert 0 < answer["probability"] < 1 and answer["gmacs"] < answer["full_gmacs"], answer
        alone = trimline("predict", [*words, "--text", answer["text"]])
        (again,) = json.loads(alone.communicate()[0])["predictions"]
        assert again["probability"] == pytest.approx(answer["probability"], abs=1e-5)
        assert again["gmacs"] == pytest.approx(answer["gmacs"])
