"""A checkpoint of any number of ranks and ZeRO stage is the same training on any other."""

from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import CheckpointStore
from pipeline.fragments import MOMENTS, WEIGHT
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.zero import SmallRun, engine_config, whole_state

BEFORE, AFTER = 3, 2
Shapes = dict[str, list[int]]


def train_and_save(process: Process, folder: Path, stage: int | None) -> Shapes:
    run = SmallRun(process, engine_config(stage))
    for _ in range(BEFORE):
        run.step()
    shapes: Shapes = run.engine.state().values["shapes"]
    save(run, folder)
    run.engine.close()
    return shapes


def save(run: SmallRun, folder: Path) -> None:
    store = CheckpointStore(folder, process=run.process)
    store.save(run.done, run.engine, run.task.tensors(), {"done": run.done})
    store.leave()


def resume(process: Process, folder: Path, again: Path, stage: int | None) -> list[list[float]]:
    """Takes what was saved, saves it anew at once, and trains on."""
    run = SmallRun(process, engine_config(stage))
    checkpoint = CheckpointStore(folder, process=process).latest()
    assert checkpoint is not None
    tensors, values = checkpoint.restore(run.engine, process)
    run.task.load(tensors)
    run.done = values["done"]
    save(run, again)
    losses = [run.step() for _ in range(AFTER)]
    run.engine.close()
    return losses


@pytest.fixture(scope="module")
def undisturbed() -> list[list[float]]:
    run = SmallRun(Process(), engine_config(None))
    return [run.step() for _ in range(BEFORE + AFTER)][BEFORE:]


Layout = tuple[int, int | None]
MOVES: list[tuple[Layout, Layout]] = [
    ((2, 2), (1, 2)),
    ((2, 2), (2, 3)),
    ((2, 2), (1, 3)),
    ((2, 2), (1, None)),
    ((3, 2), (2, 2)),
    ((3, 3), (2, 1)),
    ((1, 1), (2, 2)),  # from one worker to two, as a run that grows
    ((1, None), (2, 3)),
    ((2, 0), (3, 3)),
    ((2, 3), (2, 0)),
    ((2, 3), (2, 3)),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("saved", "wanted"), MOVES, ids=str)
def test_all_state_arrives(saved: Layout, wanted: Layout, undisturbed: list[list[float]], tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    shapes = on(saved, train_and_save, first)[0]
    results = on(wanted, resume, first, again)
    before, after = (
        whole_state(list((folder / "step_00000003").glob("engine_*")), shapes, (WEIGHT, *MOMENTS))
        for folder in (first, again)
    )
    trained = [name for name in before if name.startswith("exp_avg/")]
    assert trained and len(before) > 3 * len(trained), "weights, two moments, and the momentum tower's weights"
    online, tower = (before[f"{WEIGHT}/{part}.visual_encoder.pos_embed"] for part in ("model", "momentum"))
    assert not torch.equal(online, tower), "a tower that equals the online model would show nothing"
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    for losses in results:
        for found, expected in zip(losses, undisturbed, strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def on(layout: Layout, work: object, *folders: Path) -> list[object]:
    """Runs work on so many ranks under that stage."""
    ranks, stage = layout
    if ranks == 1:
        return [work(Process(), *folders, stage)]  # type: ignore[operator]
    return run_ranks(work, ranks, *folders, stage, timeout=150)  # type: ignore[arg-type]
