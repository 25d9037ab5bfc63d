"""The loop on real shards: exact resume, budgets, logs; and whole stages through the worker's entry."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from data_prep.sources import SourceConfig, prepare
from pipeline.checkpoint import CheckpointStore, load_weights
from pipeline.data.batch import ImageTextBatch, Skip
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.engine import EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.loop_config import LoopConfig
from pipeline.objectives.momentum import MomentumTower
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.stage import Stage
from pipeline.step_log import StepLog
from pipeline.tasks.pretraining import Pretraining
from pipeline.tasks.task import EachPartAlone, Losses
from pipeline.train import train
from pipeline.trimming.curriculum import Curriculum
from pipeline.worker import run_job
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import OTHER_BACKBONES, small_batch

SMALL: dict[str, Any] = {
    "seed": 0,
    "engine": {"name": "torch"},
    "loader": {"height": 32, "width": 32, "streams": 2, "window": 16, "workers": 0, "max_tokens": 24},
    "model": {
        "embed": 16,
        "vision": {"height": 32, "width_px": 32, "patch": 8, "width": 32, "depth": 4, "heads": 2},
        "text": {
            "vocab_size": 0, "width": 32, "text_layers": 1, "fusion_layers": 1, "heads": 2, "max_positions": 24,
            "dropout": 0.1,
        },
    },
    "pretrain": {
        "loop": {"samples": 48, "global_batch": 8, "log_every": 1},
        "objectives": {"queue": 16},
        "pruning": {"elip": {"depths": [1, 1, 1, 1], "ratios": [0.9, 0.6, 0.3]}},
    },
    "trim": {
        "loop": {"samples": 48, "global_batch": 8, "log_every": 1},
        "smarttrim": {"trimmers": {"width_share": 0.1}},
    },
    "evaluate": {"retrieval_pairs": 16, "rerank": 4, "pictures": 2},
}  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    prepare(SourceConfig(name="shapes", sizes={"train": 64, "val": 0, "test": 16, "unseen": 0}, shard_samples=16), root)
    folder = ShardFolder(root / "train")
    fields = [folder.read(row).fields for row in range(len(folder))]
    texts = [text for f in fields for text in [*f["captions"], *(s["text"] for s in f["statements"])]]
    Tokenizer.train(texts, TokenizerConfig(vocab_size=128)).save(root / "tokenizer")
    return root


def job_of(data: Path, folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    run = json.loads(json.dumps(SMALL))
    for key, value in more.pop("run", {}).items():
        part, _, name = key.rpartition(".")
        target = run
        for step in part.split("."):
            target = target[step]
        target[name] = value
    base = {"kind": kind, "stage": folder.name, "folder": str(folder), "data": str(data), "run": run, "threads": 1}
    return {**base, "tokenizer": str(data / "tokenizer"), **more}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="session")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pretrain"
    run_job(job_of(data, folder, "pretrain"), Process())
    return folder


def test_the_log_says_how_the_trainer_is_fed(pretrained: Path) -> None:
    lines = read_metrics(pretrained / "metrics.jsonl")
    assert len(lines) == 6
    for line in lines:
        assert 0 < line["data_wait"] < 1
        assert min(line["read_ms"], line["decode_ms"], line["text_ms"]) > 0
        assert "skips" not in line
    assert all(line["samples_per_second"] > 0 for line in lines[1:])


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What each pre-training begins with, which then goes no further."""
    begun: list[dict[str, torch.Tensor]] = []

    def stop(task: Pretraining, engine: EngineConfig) -> None:
        begun.append({**task.module.state_dict(), **task.tensors()})
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.pretrain._prepare_towers", stop)
    return begun


def test_all_ranks_begin_with_the_same_weights_and_momentum_tower(
    data: Path, tmp_path: Path, begun: list[dict[str, torch.Tensor]]
) -> None:
    for rank in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_job(job_of(data, tmp_path / "p", "pretrain"), Process(rank=rank, world_size=2))
    assert all(torch.equal(tensor, begun[1][name]) for name, tensor in begun[0].items())


def test_a_run_may_begin_with_given_weights(
    data: Path, pretrained: Path, tmp_path: Path, begun: list[dict[str, torch.Tensor]]
) -> None:
    init = {"pretrain.init": {"model": str(pretrained / "export")}}
    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(data, tmp_path / "p", "pretrain", run=init), Process())
    assert json.loads((tmp_path / "p/init.json").read_text()) == {"left_out": {"model": []}}
    export, _ = load_weights(pretrained / "export")
    assert all(torch.equal(tensor, begun[0][f"model.{name}"]) for name, tensor in export.items())
    # The momentum tower begins as a copy of the given weights.
    copied = {name: tensor for name, tensor in begun[0].items() if name.startswith("momentum.")}
    assert copied
    assert all(torch.equal(tensor, export[name.removeprefix("momentum.")]) for name, tensor in copied.items())


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the middle of the next training, after so many of its steps."""
    add = StepLog.add

    def add_and_stop(self: StepLog, step: int, *values: Any) -> None:
        add(self, step, *values)
        if step == steps:
            monkeypatch.setattr(StepLog, "add", add)
            raise KeyboardInterrupt

    monkeypatch.setattr(StepLog, "add", add_and_stop)


@pytest.mark.parametrize("backbone", ["albef", *OTHER_BACKBONES])
def test_pretraining_goes_on_exactly_where_a_checkpoint_left_it(
    backbone: str, data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "pretrain", pretrained
    sizes = {
        f"model.{key}": value for key, value in {"backbone": backbone, **OTHER_BACKBONES.get(backbone, {})}.items()
    }
    if backbone != "albef":
        whole = tmp_path / "whole"
        run_job(job_of(data, whole, "pretrain", run=sizes), Process())
    interrupt_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(data, folder, "pretrain", run={**sizes, "pretrain.loop.checkpoint_seconds": 0.0}), Process())
    assert len(losses(folder)) == 4
    run_job(job_of(data, folder, "pretrain", run=sizes), Process())
    assert losses(folder) == losses(whole)
    assert (folder / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()


ALONE = Process()


class Counting(EachPartAlone):
    """A task that says how often it was called; its loss is the mean of the pixels."""

    def __init__(self) -> None:
        self.module: torch.nn.Module = torch.nn.Linear(1, 1)
        self.calls: list[str] = []

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        self.calls.append("losses")
        mean = batch.pixels.float().mean()
        total = forward(torch.ones(1, 1)).sum() * 0 + mean
        return Losses(total, {"mean": total}, {"first": batch.pixels[0].float().mean()})

    def before_update(self, progress: float) -> None:
        self.calls.append("before")

    def after_update(self, progress: float) -> None:
        self.calls.append("after")

    def drop_update(self) -> None:
        self.calls.append("drop")

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        pass


def count_steps(
    folder: Path, steps: int, accumulation: int = 1, process: Process = ALONE, **loop: Any
) -> tuple[Counting, dict[str, Any]]:
    task = Counting()
    config = EngineConfig(name="torch" if process.world_size == 1 else "deepspeed", accumulation=accumulation)
    engine = build_engine(config, OptimizerConfig(), task.module, split_decay(task.module), process)
    loop_config = LoopConfig(samples=4 * steps, global_batch=4, **loop)

    def batches(start: int, end: int) -> Iterator[ImageTextBatch]:
        for seed in range(start, end):
            yield replace(small_batch(4, seed), skipped=[Skip("a.tar", 0, "k", "grey", 0)] * (process.rank + 1))

    return task, train(task, engine, batches, loop_config, Stage(folder, process))


def test_an_update_of_several_parts_is_announced_once_and_logged_as_their_mean(tmp_path: Path) -> None:
    task, _ = count_steps(tmp_path, 2, accumulation=2, log_every=1)
    assert task.calls == ["before", "losses", "losses", "after"] * 2
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        pixels = small_batch(4, line["step"] - 1).pixels.float()
        assert line["loss"] == line["loss/mean"] == pytest.approx(float(pixels.mean()))
        assert line["first"] == pytest.approx(float((pixels[0].mean() + pixels[2].mean()) / 2))


def test_lines_of_the_log_are_those_of_an_undisturbed_run_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        count_steps(tmp_path, 8, log_every=3, checkpoint_seconds=0.0)
    _, result = count_steps(tmp_path, 8, log_every=3)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert result["skipped"] == 8
    count_steps(tmp_path / "whole", 8, log_every=3)
    for line, undisturbed in zip(lines, read_metrics(tmp_path / "whole" / "metrics.jsonl"), strict=True):
        assert {name: line[name] for name in ("loss", "loss/mean", "first", "lr")} == {
            name: undisturbed[name] for name in ("loss", "loss/mean", "first", "lr")
        }


def test_the_end_is_saved_once_and_the_first_step_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    begin = CheckpointStore.begin
    monkeypatch.setattr(CheckpointStore, "begin", lambda store, step, *a: (saved.append(step), begin(store, step, *a)))
    count_steps(tmp_path, 3, log_every=1, checkpoint_seconds=0.0)
    assert saved == [1, 2, 3]
    rates = [line["lr"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert all(rate > 0 for rate in rates)
    count_steps(tmp_path, 3, log_every=1)
    assert saved == [1, 2, 3]


def skipped_of_rank(process: Process, folder: Path) -> list[int]:
    first = count_steps(folder, 2, process=process)[1]["skipped"]
    return [first, count_steps(folder, 4, process=process)[1]["skipped"]]


@pytest.mark.timeout(120)
def test_skipped_samples_are_those_of_all_processes_before_and_after_a_restart(tmp_path: Path) -> None:
    assert run_ranks(skipped_of_rank, 2, tmp_path) == [[6, 12], [6, 12]]


@pytest.mark.parametrize("kind", ["pretrain", "trim"])
def test_schedules_move_once_an_update_however_many_parts_it_has(
    kind: str, data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for owner, name in ((MomentumTower, "update"), (Curriculum, "observe")):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _of=method, _name=name, **k: (seen.append(_name), _of(*a, **k)))
    more = {"target": 1.5, "backbone": str(pretrained / "export")} if kind == "trim" else {}
    run_job(job_of(data, tmp_path / kind, kind, run={"engine.accumulation": 2}, **more), Process())
    assert seen == [{"pretrain": "update", "trim": "observe"}[kind]] * 6
    assert len(losses(tmp_path / kind)) == 6


def test_the_temperature_stays_between_its_limits(data: Path, tmp_path: Path) -> None:
    change = {"pretrain.objectives.temperature_lr": 1e6, "pretrain.loop.samples": 32}
    run_job(job_of(data, tmp_path / "p", "pretrain", run=change), Process())
    seen = [line["temperature"] for line in read_metrics(tmp_path / "p" / "metrics.jsonl")]
    assert all(0.001 - 1e-6 <= value <= 0.5 for value in seen) and len(set(seen)) > 1


def test_trimming_goes_on_exactly_where_a_checkpoint_left_it(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"target": 1.5, "backbone": str(pretrained / "export")}
    once, twice = tmp_path / "once", tmp_path / "twice"
    run_job(job_of(data, once, "trim", **more), Process())
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(data, twice, "trim", run={"trim.loop.checkpoint_seconds": 0.0}, **more), Process())
    run_job(job_of(data, twice, "trim", **more), Process())
    assert losses(twice) == losses(once)
    assert (twice / "export/model.safetensors").read_bytes() == (once / "export/model.safetensors").read_bytes()


def test_the_first_trimmed_step_keeps_everything(data: Path, pretrained: Path, tmp_path: Path) -> None:
    run_job(job_of(data, tmp_path / "t", "trim", target=1.5, backbone=str(pretrained / "export")), Process())
    first = read_metrics(tmp_path / "t" / "metrics.jsonl")[0]
    assert [first[f"kept/{group}"] for group in ("vision", "text", "msa", "mca")] == [1.0] * 4


def test_evaluation_gives_rows_and_pictures_for_every_model(data: Path, pretrained: Path, tmp_path: Path) -> None:
    backbone = str(pretrained / "export")
    trimmed = {}
    for target in (1.0, 1.5):
        folder = tmp_path / f"trim-{target}"
        run_job(job_of(data, folder, "trim", target=target, backbone=backbone), Process())
        trimmed[folder.name] = str(folder / "export")
    more = {"pretrained": backbone, "trimmed": trimmed}
    rows = run_job(job_of(data, tmp_path / "evaluate", "evaluate", **more), Process())["rows"]
    assert {row["metric"] for row in rows} == {"accuracy", "R@10", "mean_recall"} | {
        f"{way} R@{k}" for way in ("TR", "IR") for k in (1, 5, 10)
    }
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 100
        assert row["gmacs"] > 0
    alone = run_job(job_of(data, tmp_path / "alone", "evaluate", run={"evaluate.batch_size": 3}, **more), Process())
    assert [row["value"] for row in alone["rows"]] == [row["value"] for row in rows]
    run_job(job_of(data, tmp_path / "survivors", "survivors", **more), Process())
    pictures = json.loads((tmp_path / "survivors" / "survivors.json").read_text())
    assert len(pictures) == 2
    for picture in pictures:
        assert (tmp_path / "survivors" / picture["image"]).exists()
        assert {sentence["model"] for sentence in picture["sentences"]} == {"pretrain", "1.5x"}


def test_no_pictures_are_drawn_where_none_are_wanted(data: Path, pretrained: Path, tmp_path: Path) -> None:
    job = job_of(data, tmp_path, "survivors", run={"evaluate.pictures": 0}, pretrained=str(pretrained / "export"))
    assert run_job(job, Process())["pictures"] == 0
    assert json.loads((tmp_path / "survivors.json").read_text()) == []


def test_a_budget_ends_training_in_time_with_its_schedule_complete(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pretrain"
    more = {"run": {"pretrain.loop.samples": 800000}, "budget_seconds": 4.0}
    result = run_job(job_of(data, folder, "pretrain", **more), Process())
    assert 4.0 <= result["seconds"] < 8.0
    rates = [line["lr"] for line in read_metrics(folder / "metrics.jsonl")]
    assert rates[-1] < 0.4 * max(rates)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"pretrain.loop.global_batch": 1}, "global_batch 2"),
        ({"loader.height": 40}, "the loader gives 40 x 32"),
        ({"loader.max_tokens": 30}, "max_positions=24"),
        ({"model.text.vocab_size": 10}, "set it to 0"),
        ({"pretrain.pruning.elip.depths": [2, 2, 6, 2]}, "add up to 12"),
        ({"engine.micro_batch": 1}, "engine.micro_batch 2"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    data: Path, tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    with pytest.raises(UserError, match=names):
        run_job(job_of(data, tmp_path / "p", "pretrain", run=change), Process())
    assert not (tmp_path / "p" / "metrics.jsonl").exists()


def test_two_models_of_one_seed_are_the_same() -> None:
    from pipeline.rng_state import seed_everything

    draws = []
    for _ in range(2):
        seed_everything(3, 1)
        draws.append(torch.randn(3))
    assert torch.equal(draws[0], draws[1])
