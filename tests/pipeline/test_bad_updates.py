"""A loss that is not a number: the run stops, leaves the update out, or goes back and tries again."""

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep import targets
from data_prep.errors import UserError
from pipeline.bad_updates import BadUpdateConfig, BadUpdates, Rewind
from pipeline.checkpoint import CheckpointConfig
from pipeline.data.batch import ImageTextBatch
from pipeline.engine import EngineConfig, NonFiniteError, OptimizerConfig, build_engine, split_decay
from pipeline.loop_config import LoopConfig
from pipeline.process import Process
from pipeline.progress import BAD_UPDATES, read_metrics
from pipeline.stage import Stage
from pipeline.tasks.task import EachPartAlone, Losses
from pipeline.train import train
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_batch
from tests.pipeline.stores import FailingStore, emptied

STEPS = 8
ERROR = NonFiniteError("the loss is nan")


class Poisoned(EachPartAlone):
    """A task whose loss is NaN in some calls on one rank; its weights tell which batches it learned from."""

    def __init__(self, bad_calls: set[int], bad_rank: int, process: Process) -> None:
        torch.manual_seed(0)
        self.module: torch.nn.Module = torch.nn.Linear(3, 1)
        self.bad_calls = bad_calls if process.rank == bad_rank else set()
        self.calls = 0
        self.dropped = 0

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        x = batch.pixels.float().mean((2, 3)) / 255
        total = (forward(x) - 1).square().mean()
        if self.calls in self.bad_calls:
            total = total * math.nan
        self.calls += 1
        return Losses(total, {"square": total})

    def before_update(self, progress: float) -> None: ...

    def after_update(self, progress: float) -> None: ...

    def drop_update(self) -> None:
        self.dropped += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, tensors: Any) -> None: ...


Outcome = tuple[dict[str, Any], list[float], list[float]]


class Losing(Poisoned):
    """A task that loses its only checkpoint as its loss is NaN."""

    folder: Path

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        if self.calls in self.bad_calls:
            saved = self.folder / "checkpoints" / "step_00000002"
            end = time.monotonic() + 20
            while not (saved / "COMPLETE").exists():
                assert time.monotonic() < end
                time.sleep(0.01)
            shutil.rmtree(saved)
        return super().losses(forward, batch, progress)


def run(process: Process, folder: Path, bad_calls: set[int], accumulation: int = 1, **bad: Any) -> Outcome:
    """What training says, the losses that it logged, and its last weights."""
    return run_task(
        Poisoned(bad_calls, process.world_size - 1, process), process, Stage(folder, process), accumulation, **bad
    )


def run_task(
    task: Poisoned, process: Process, stage: Stage, accumulation: int = 1, seconds: float = 0.0, **bad: Any
) -> Outcome:
    name = "torch" if process.world_size == 1 else "deepspeed"
    config = EngineConfig(name=name, accumulation=accumulation)  # type: ignore[arg-type]
    engine = build_engine(config, OptimizerConfig(lr=0.05), task.module, split_decay(task.module), process)

    def batches(start: int, end: int) -> Iterator[ImageTextBatch]:
        share = 4 // process.world_size
        rows = slice(process.rank * share, (process.rank + 1) * share)
        return (small_batch(4, seed).part(rows) for seed in range(start, end))

    loop = LoopConfig(
        samples=4 * STEPS, global_batch=4, log_every=1, checkpoint_seconds=seconds, bad_updates=BadUpdateConfig(**bad)
    )
    result = train(task, engine, batches, loop, stage)
    losses = [line["loss"] for line in read_metrics(stage.folder / "metrics.jsonl")]
    weights = torch.cat([tensor.flatten() for tensor in engine.weights().values()]).tolist()
    engine.close()
    return result, losses, weights


def test_a_run_stops_before_the_step_unless_asked_otherwise(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is nan.*no weight has changed.*skip or rewind"):
        run(Process(), tmp_path, {3})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_bad_batch_is_passed_over(accumulation: int, tmp_path: Path) -> None:
    bad = {accumulation * 3}
    result, losses, _ = run(Process(), tmp_path, bad, accumulation, action="skip")
    assert result["left_out"] == 1 and result["steps"] == STEPS
    assert len(losses) == STEPS - 1 and all(map(math.isfinite, losses))
    _, whole, _ = run(Process(), tmp_path / "whole", set(), accumulation)
    assert losses[:3] == whole[:3] and losses[3:] != whole[4:]
    (line,) = read_metrics(tmp_path / BAD_UPDATES)
    assert line["step"] == 4 and "the loss is nan" in line["why"] and "back_to" not in line
    assert not (tmp_path / "whole" / BAD_UPDATES).exists()


def test_a_fault_that_passes_leaves_no_trace_after_a_rewind(tmp_path: Path) -> None:
    result, losses, weights = run(Process(), tmp_path / "faulty", {3}, action="rewind")
    expected = run(Process(), tmp_path / "whole", set())
    assert result["left_out"] == 0
    assert (losses, weights) == expected[1:]
    assert [(line["step"], line["back_to"]) for line in read_metrics(tmp_path / "faulty" / BAD_UPDATES)] == [(4, 3)]


def test_a_rewind_goes_back_further_where_the_save_under_way_gets_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_PAUSES", ())
    for name, value in {"fails": "upload", "where": "step_00000003", "failures": 1}.items():
        monkeypatch.setattr(FailingStore, name, value)
    stage = Stage(tmp_path / "faulty", Process(), checkpoint=CheckpointConfig(path=emptied(FailingStore)))
    result, losses, weights = run_task(Poisoned({3}, 0, Process()), Process(), stage, action="rewind")
    assert FailingStore.failures == 0 and result["left_out"] == 0
    assert [(line["step"], line["back_to"]) for line in read_metrics(stage.folder / BAD_UPDATES)] == [(4, 2)]
    assert (losses, weights) == run(Process(), tmp_path / "whole", set())[1:]


def test_a_run_does_not_begin_anew_with_trained_weights_where_its_checkpoint_is_lost(tmp_path: Path) -> None:
    task = Losing({3}, 0, Process())
    task.folder = tmp_path
    stage = Stage(tmp_path, Process(), checkpoint=CheckpointConfig(keep_every_steps=2))
    with pytest.raises(UserError, match="holds no whole checkpoint to go back to"):
        run_task(task, Process(), stage, seconds=1000.0, action="rewind")


def test_what_fails_again_after_a_rewind_is_passed_over(tmp_path: Path) -> None:
    # The third step fails, and so does the call that repeats it.
    result, losses, weights = run(Process(), tmp_path / "again", {3, 4}, action="rewind")
    skipped = run(Process(), tmp_path / "skipped", {3}, action="skip")
    assert result["left_out"] == 1
    assert (losses, weights) == skipped[1:]
    told = [(line["step"], line.get("back_to")) for line in read_metrics(tmp_path / "again" / BAD_UPDATES)]
    assert told == [(4, 3), (4, None)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_one_bad_rank_of_two_is_dealt_with_by_both(action: str, tmp_path: Path) -> None:
    results = run_ranks(poisoned_rank, 2, tmp_path, action, timeout=150)
    assert results[0] == results[1]
    expected = run_ranks(poisoned_rank, 2, tmp_path / "whole", None, timeout=150)[0]
    assert (results[0] == expected) == (action == "rewind")
    assert all(map(math.isfinite, results[0]))


def poisoned_rank(process: Process, folder: Path, action: str | None) -> list[float]:
    bad = {} if action is None else {"action": action}
    return run(process, folder, set() if action is None else {3}, **bad)[2]


def test_too_many_in_a_row_end_the_run() -> None:
    bad = BadUpdates(BadUpdateConfig(action="skip", limit=2))
    for step in (1, 2):
        bad.bad(step, ERROR, can_rewind=True)
    bad.good()
    for step in (4, 5):
        bad.bad(step, ERROR, can_rewind=True)
    with pytest.raises(NonFiniteError, match="2 updates were left out in a row"):
        bad.bad(6, ERROR, can_rewind=True)
    assert bad.left_out == 4


def test_too_many_rewinds_end_the_run_and_none_begins_without_a_checkpoint() -> None:
    bad = BadUpdates(BadUpdateConfig(action="rewind", limit=2))
    bad.bad(0, ERROR, can_rewind=False)
    assert bad.left_out == 1
    for step in (1, 2):
        with pytest.raises(Rewind):
            bad.bad(step, ERROR, can_rewind=True)
    with pytest.raises(NonFiniteError, match="2 updates were rewound before"):
        bad.bad(3, ERROR, can_rewind=True)


@pytest.mark.parametrize(
    ("given", "said"), [({"action": "pray"}, "give stop, skip or rewind"), ({"limit": 0}, "limit")]
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        BadUpdateConfig(**given)


def test_what_is_told_of_bad_updates_adds_up_after_restarts(tmp_path: Path) -> None:
    def told() -> list[tuple[int, int | None]]:
        return [(line["step"], line.get("back_to")) for line in read_metrics(tmp_path / BAD_UPDATES)]

    rules = BadUpdateConfig(action="rewind")
    bad = BadUpdates(rules, tmp_path)
    bad.go_on(0, 0)
    bad.bad(1, ERROR, can_rewind=False)  # left out: there is no checkpoint yet
    with pytest.raises(Rewind):
        bad.bad(5, ERROR, can_rewind=True)
    bad.go_on(4, 1)
    bad.bad(5, ERROR, can_rewind=True)
    assert told() == [(2, None), (6, 4), (6, None)] and bad.left_out == 2
    # Killed, and started again from the same checkpoint: the sixth update is still to come.
    again = BadUpdates(rules, tmp_path)
    again.go_on(4, 1)
    assert told() == [(2, None), (6, 4)] and again.left_out == 1
    BadUpdates(rules, tmp_path).go_on(0, 0)
    assert told() == []
