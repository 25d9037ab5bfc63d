"""Fine-tuning that is scored on held-out data: the best weights are exported, exactly, also after a stop."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.status import read_state
from launch.status_text import state_text
from pipeline.checkpoint import CheckpointConfig, load_weights
from pipeline.checkpoint_rules import Saved, highest_of, kept
from pipeline.data.batch import ImageTextBatch
from pipeline.engine import EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.loop_config import LoopConfig
from pipeline.metrics.tasks import Score
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.stage import Stage
from pipeline.tasks.task import EachPartAlone, Losses
from pipeline.train import train
from pipeline.trim_validate import values_of
from pipeline.validation import Scored, Validation, ValidationConfig
from pipeline.worker import run_job
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_batch
from tests.pipeline.test_train import data, interrupt_after, job_of, losses, pretrained

__all__ = ["data", "pretrained"]  # fixtures


class Pulled(EachPartAlone):
    """A task whose one weight grows with every step."""

    def __init__(self) -> None:
        linear = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(linear.weight)
        self.module: torch.nn.Module = linear
        self.steps = 0

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        total = -forward(torch.ones(1, 1)).sum()
        return Losses(total, {"pull": total})

    def before_update(self, progress: float) -> None:
        pass

    def after_update(self, progress: float) -> None:
        self.steps += 1

    def drop_update(self) -> None:
        pass

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.steps = int(tensors["steps"])


def pulled(
    folder: Path,
    scores: Mapping[int, float],
    every: int = 2,
    since: float = 0.0,
    costs: Mapping[int, float] | None = None,
    **loop: Any,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Eight steps; the state at the end and what training said. Scores are those of the task's own step.

    With costs, half of the full one is wanted.
    """
    task = Pulled()
    engine = build_engine(
        EngineConfig(name="torch"), OptimizerConfig(), task.module, split_decay(task.module), Process()
    )

    def batches(start: int, end: int) -> Iterator[ImageTextBatch]:
        return (small_batch(4, seed) for seed in range(start, end))

    def score() -> Scored:
        cost = 1.0 if costs is None else costs[task.steps]
        return Scored({"accuracy": scores[task.steps], "other": 1.0}, cost)

    validation = Validation(ValidationConfig(every_steps=every), since, score, None if costs is None else 0.5)
    config = LoopConfig(samples=32, global_batch=4, **loop)
    said = train(task, engine, batches, config, Stage(folder, Process()), validation=validation)
    weight = float(engine.weights()["weight"])
    engine.close()
    return {"weight": weight, "steps": float(task.steps)}, said


RISING = {2: 10.0, 4: 30.0, 6: 20.0, 8: 5.0}


def test_training_ends_with_the_weights_that_scored_best(tmp_path: Path) -> None:
    state, said = pulled(tmp_path / "a", RISING, log_every=4)
    assert said["best"] == {"metric": "accuracy", "value": 30.0, "step": 4}
    assert said["steps"] == 8 and state["steps"] == 4
    last, said = pulled(tmp_path / "b", dict(sorted(RISING.items())) | {8: 31.0})
    assert said["best"]["step"] == 8 and last["weight"] > state["weight"] > 0
    early, _ = pulled(tmp_path / "c", {2: 9.0, 4: 9.0, 6: 9.0, 8: 9.0})
    assert early["steps"] == 2, "the first of equal ones"
    lines = {line["step"]: line for line in read_metrics(tmp_path / "a" / "metrics.jsonl")}
    assert sorted(lines) == [2, 4, 6, 8], "a line ends where it is scored"
    assert [lines[step]["validation/accuracy"] for step in lines] == list(RISING.values())
    assert [lines[step]["validation/best"] for step in lines] == [10, 30, 30, 30]
    assert [lines[step]["validation/best_step"] for step in lines] == [2, 4, 4, 4]
    assert all(line["loss"] <= 0 and line["validation/other"] == 1 for line in lines.values())


def test_nothing_is_scored_before_its_time_but_the_end_always_is(tmp_path: Path) -> None:
    state, _ = pulled(tmp_path / "a", {6: 1.0, 8: 0.5}, since=0.7)
    assert state["steps"] == 6
    state, said = pulled(tmp_path / "b", {8: 0.5}, every=1000)
    assert state["steps"] == 8 and said["best"]["value"] == 0.5
    scored = [line for line in read_metrics(tmp_path / "b" / "metrics.jsonl") if "validation/accuracy" in line]
    assert [line["step"] for line in scored] == [8]


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_a_stop_changes_neither_scores_nor_the_best(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, wanted = pulled(tmp_path / "whole", RISING, log_every=1)
    interrupt_after(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pulled(tmp_path / "stopped", RISING, log_every=1)
    state, said = pulled(tmp_path / "stopped", RISING, log_every=1)
    assert (state, said["best"]) == (whole, wanted["best"])
    again, said = pulled(tmp_path / "stopped", {}, log_every=1)  # all is done: nothing is scored again
    assert (again, said["best"]) == (whole, wanted["best"])
    names = ("step", "loss", "validation/accuracy", "validation/best", "validation/best_step")
    both = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("stopped", "whole"))
    for mine, theirs in itertools.zip_longest(*both):
        assert {name: mine.get(name) for name in names} == {name: theirs.get(name) for name in names}


def test_only_what_costs_as_wanted_competes(tmp_path: Path) -> None:
    costs = {2: 0.9, 4: 0.53, 6: 0.52, 8: 0.48}
    state, said = pulled(tmp_path / "a", {2: 99.0, 4: 50.0, 6: 20.0, 8: 19.0}, costs=costs, log_every=1)
    assert said["best"] == {"metric": "accuracy", "value": 20.0, "step": 6, "at_target": True} and state["steps"] == 6
    lines = {line["step"]: line for line in read_metrics(tmp_path / "a" / "metrics.jsonl")}
    assert {step: lines[step]["validation/cost"] for step in costs} == costs
    assert [step for step in lines if "validation/best" in lines[step]] == [6, 8]
    assert [step for step in lines if "validation/at_target" in lines[step]] == [6, 8]


def test_where_no_cost_is_as_wanted_the_last_state_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    costs = {2: 0.9, 4: 0.8, 6: 0.7, 8: 0.6}
    for _ in range(2):  # the second finds all done
        state, said = pulled(tmp_path / "a", RISING, costs=costs, log_every=1)
        assert said["best"] == {"metric": "accuracy", "value": 5.0, "step": 8, "at_target": False}
        assert state["steps"] == 8
        assert "no scored state came within 5% of the wanted cost: the last one is exported" in caplog.text
        caplog.clear()


def test_the_best_stays_among_the_newest() -> None:
    values = {1: 2.0, 2: 5.0, 3: 5.0, 4: 1.0}
    saved = [Saved(name=f"s{step}", step=step, metrics={"v": value}) for step, value in values.items()][::-1]
    saved.insert(0, Saved(name="s5", step=5, metrics={}))
    best = highest_of(saved, "v")
    assert best is not None and best.step == 2
    assert kept(saved, CheckpointConfig(keep_last=1), "v") == {"s5", "s2"}
    assert kept(saved, CheckpointConfig(keep_last=1)) == {"s5"}
    assert highest_of(saved, "w") is None


def tuned(data: Path, pretrained: Path, folder: Path, target: float = 1.0, **validation: Any) -> dict[str, Any]:
    run: dict[str, Any] = {"trim.smarttrim": {"trimmers": {"width_share": 0.1}, "calibrate": 0}}
    if validation:
        run["trim.validation"] = {"split": "test", "every_steps": 1, **validation}
    given = {"target": target, "backbone": str(pretrained / "export"), "run": run}
    counts: dict[str, Any] = run_job(job_of(data, folder, "trim", **given), Process())
    return counts


@pytest.mark.parametrize("target", [1.0, 1.5])
def test_what_is_exported_scores_as_it_did_in_training(
    data: Path, pretrained: Path, tmp_path: Path, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(data, pretrained, tmp_path / "plain", target)
    counts = tuned(data, pretrained, tmp_path / "t", target, batch_size=7)
    assert losses(tmp_path / "t") == losses(tmp_path / "plain"), "scoring changes nothing of training"
    lines = read_metrics(tmp_path / "t" / "metrics.jsonl")
    scored = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    # With trimming the curriculum comes first: half of the steps.
    assert sorted(scored) == ([1, 2, 3, 4, 5, 6] if target == 1.0 else [3, 4, 5, 6])
    best = counts["best"]
    near = {line["step"]: line["validation/at_target"] for line in lines if "validation/at_target" in line}
    competing = scored if target == 1.0 else near or {6: scored[6]}
    assert best["value"] == max(competing.values()) == scored[best["step"]]
    assert best.get("at_target", True) == (target == 1.0 or bool(near))
    assert read_json(tmp_path / "t/export/config.json")["validation"] == best
    job = job_of(data, tmp_path / "e", "evaluate", pretrained=None, trimmed={"t": str(tmp_path / "t/export")})
    rows = {row["metric"]: row["value"] for row in run_job(job, Process())["rows"]}
    assert rows["accuracy"] == pytest.approx(best["value"])
    interrupt_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        tuned(data, pretrained, tmp_path / "twice", target, batch_size=7)
    assert tuned(data, pretrained, tmp_path / "twice", target, batch_size=7)["best"] == best
    one, two = (load_weights(tmp_path / name / "export")[0] for name in ("t", "twice"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_mistakes_are_told(data: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trim\.validation\.metric=recall is no score of trim\.task=statement: acc"):
        tuned(data, pretrained, tmp_path / "a", metric="recall")
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    with pytest.raises(UserError, match=r"metric=consistency is no score of 'test'; it has accuracy"):
        tuned(data, pretrained, tmp_path / "b", metric="consistency")
    with pytest.raises(UserError, match=r"metric=consistency wants whole groups .* trim\.validation\.samples=5 tears"):
        ValidationConfig(every_steps=2, metric="consistency", samples=5)
    with pytest.raises(UserError, match=r"trim\.validation\.samples=0 must be at least 1"):
        ValidationConfig(every_steps=2, samples=0)


def test_a_sample_has_no_consistency() -> None:
    scores = [Score(name, 50.0, 40.0, 60.0, 2) for name in ("accuracy", "consistency")]
    assert values_of(scores, sampled=True) == {"accuracy": 50.0}
    assert values_of(scores, sampled=False) == {"accuracy": 50.0, "consistency": 50.0}


def test_status_tells_the_last_and_the_best_score(tmp_path: Path) -> None:
    pulled(tmp_path / "stages" / "trim", RISING, log_every=1)
    (tmp_path / "run.json").write_text('{"name": "r", "stages": {"trim": []}}')
    (tmp_path / "stages/trim/status.json").write_text('{"state": "done", "seconds": 1.0}')
    state = read_state(tmp_path)
    assert state["stages"]["trim"]["validation"] == {
        "step": 8, "accuracy": 5.0, "other": 1.0, "cost": 1.0, "best": 30.0, "best_step": 4.0
    }  # fmt: skip
    assert "validation: accuracy 5.00, other 1.00, cost 1.00 after step 8; best 30.00 after step 4" in state_text(state)
    (tmp_path / "stages/trim/metrics.jsonl").write_text(
        '{"step": 2, "validation/accuracy": 7.0, "validation/cost": 1}\n'
    )
    told = state_text(read_state(tmp_path))
    assert "accuracy 7.00, cost 1.00 after step 2; none has come near the wanted cost yet" in told


def tuned_on(process: Process, data: Path, pretrained: Path, folder: Path) -> dict[str, Any]:
    run = {"trim.validation": {"split": "test", "every_steps": 1}, "trim.loop.samples": 24}
    run |= {"engine.name": "deepspeed", "engine.zero_stage": 2} if process.world_size > 1 else {}
    given = {"target": 1.5, "backbone": str(pretrained / "export"), "run": run}
    counts: dict[str, Any] = run_job(job_of(data, folder, "trim", **given), process)
    return counts


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_processes_that_train_together_score_together(data: Path, pretrained: Path, tmp_path: Path) -> None:
    alone = tuned_on(Process(), data, pretrained, tmp_path / "alone")
    both = run_ranks(tuned_on, 2, data, pretrained, tmp_path / "both", timeout=120.0)
    assert both[0]["best"] == both[1]["best"]
    assert both[0]["best"]["value"] == pytest.approx(alone["best"]["value"], abs=5.0)
