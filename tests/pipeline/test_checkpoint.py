"""Checkpoints are complete or absent, fit or are refused, and bring everything back."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.checkpoint import CheckpointConfig, CheckpointStore, export_weights, load_weights
from pipeline.engine import Engine, EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.process import Process

ONE = Process()


def new_engine(seed: int = 0) -> Engine:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    config = EngineConfig(name="torch")
    return build_engine(config, OptimizerConfig(lr=0.1), module, split_decay(module), ONE)


def step(engine: Engine) -> float:
    return engine.step(engine(torch.randn(8, 4)).square().mean(), 1.0).loss


def save(store: CheckpointStore, number: int, engine: Engine | None = None) -> Path:
    marker = {"queue": torch.full((3,), number)}
    store.save(number, engine or new_engine(), marker, {"step": number})
    return store.place.folder / f"step_{number:08d}"  # type: ignore[attr-defined]


def newest(store: CheckpointStore) -> int | None:
    checkpoint = store.latest()
    return checkpoint.step if checkpoint else None


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").latest() is None


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    engine = new_engine()
    for _ in range(3):
        step(engine)
    tower = {"tower": torch.randn(4, 4), "pointer": torch.tensor(7), "flags": torch.tensor([True, False])}
    random.gauss(0, 1)
    np.random.standard_normal()
    store.save(3, engine, tower, {"position": [3, 4], "note": "é"})
    undisturbed = [step(engine) for _ in range(3)] + [random.gauss(0, 1), np.random.standard_normal()]
    again = new_engine(seed=1)
    checkpoint = store.latest()
    assert checkpoint is not None
    tensors, values = checkpoint.restore(again, ONE)
    resumed = [step(again) for _ in range(3)] + [random.gauss(0, 1), np.random.standard_normal()]
    assert resumed == undisturbed
    assert values == {"position": [3, 4], "note": "é"}
    assert {name: (t.dtype, t.tolist()) for name, t in tensors.items()} == {
        name: (t.dtype, t.tolist()) for name, t in tower.items()
    }


def test_saving_changes_nothing(tmp_path: Path) -> None:
    def losses(saving: bool) -> list[float]:
        engine = new_engine()
        found = []
        for number in range(4):
            found.append(step(engine))
            if saving:
                save(CheckpointStore(tmp_path), number, engine)
        return found

    assert losses(saving=True) == losses(saving=False)


def test_tensors_that_share_memory_are_saved_one_by_one(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.t()}
    store = CheckpointStore(tmp_path)
    store.save(1, new_engine(), tensors, {})
    checkpoint = store.latest()
    assert checkpoint is not None
    restored, _ = checkpoint.restore(new_engine(), ONE)
    torch.testing.assert_close(restored, tensors)


def test_keeps_the_last_ones_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=2))
    for number in (5, 10, 9, 100_000_000):
        save(store, number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_100000000"]
    with pytest.raises(UserError, match="keep_last=0"):
        CheckpointStore(tmp_path, CheckpointConfig(keep_last=0))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=1))
    save(store, 1, new_engine(seed=1))
    engine = new_engine(seed=2)
    save(store, 1, engine)
    checkpoint = store.latest()
    again = new_engine()
    assert checkpoint is not None
    checkpoint.restore(again, ONE)
    torch.testing.assert_close(again.weights(), engine.weights(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def unmark(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def shorten(folder: Path) -> None:
    with open(folder / "state.safetensors", "r+b") as file:
        file.truncate(10)


def lose_a_file(folder: Path) -> None:
    (folder / "values.json").unlink()


def edit_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("step", "stop"))


@pytest.mark.parametrize("damage", [unmark, shorten, lose_a_file, edit_the_manifest])
def test_an_incomplete_one_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    damage(save(store, 2))
    assert newest(store) == 1


def flip_a_bit(folder: Path) -> None:
    path = folder / "engine_0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def slip_a_file_in(folder: Path) -> None:
    (folder / "extra.pt").write_bytes(b"pickle")


@pytest.mark.parametrize("damage", [flip_a_bit, slip_a_file_in])
def test_a_changed_file_is_refused_before_it_is_read(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = CheckpointStore(tmp_path)
    damage(save(store, 1))
    checkpoint = store.latest()
    engine = new_engine(seed=3)
    before = engine.weights()
    assert checkpoint is not None
    with pytest.raises(UserError, match=r"step_00000001 is damaged .*delete this folder"):
        checkpoint.restore(engine, ONE)
    torch.testing.assert_close(engine.weights(), before, rtol=0, atol=0)


def test_another_model_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    module = nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(9), nn.Linear(9, 1))
    config = EngineConfig(name="torch")
    engine = build_engine(config, OptimizerConfig(), module, split_decay(module), ONE)
    checkpoint = store.latest()
    assert checkpoint is not None
    with pytest.raises(UserError, match=r"another model .*size mismatch for 0\.weight.*--fresh") as caught:
        checkpoint.restore(engine, ONE)
    assert "\n" not in str(caught.value)


def test_leftovers_of_a_killed_run_go_at_the_next_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    unmark(save(store, 1))
    (tmp_path / ".partial_step_00000007" / "engine").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not ours")
    save(store, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step_00000002"]


def in_a_child(work: Callable[[], object]) -> int:
    """Runs work in a forked process, and returns how it ended: 0, or minus the number of a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_FILE_EVENTS = ("open", "os.", "shutil.")


def kill_at(event: int, work: Callable[[], object]) -> None:
    """Runs work, but kills this process as it is about to do its event-th thing to the file system."""
    seen = 0

    def watch(name: str, _: object) -> None:
        nonlocal seen
        if name.startswith(_FILE_EVENTS):
            seen += 1
            if seen == event + 1:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work()


@pytest.fixture
def one_thread() -> None:
    # A forked child has none of the threads that torch might count on.
    torch.set_num_threads(1)


@pytest.mark.parametrize("next_step", [1, 2])
def test_killed_at_any_moment_of_saving(tmp_path: Path, one_thread: None, next_step: int) -> None:
    store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=1))
    engines = {"old": new_engine(seed=1), "new": new_engine(seed=2)}
    weights = {name: str(engine.weights()) for name, engine in engines.items()}
    survived = "none"
    seen = set()
    for event in range(1000):
        if survived != "old":
            shutil.rmtree(tmp_path)
            save(store, 1, engines["old"])
        ended = in_a_child(lambda: kill_at(event, lambda: save(store, next_step, engines["new"])))  # noqa: B023
        checkpoint = store.latest()
        assert checkpoint is not None, f"killed at event {event}: nothing is left"
        again = new_engine()
        tensors, values = checkpoint.restore(again, ONE)
        survived = {text: name for name, text in weights.items()}[str(again.weights())]
        assert checkpoint.step == values["step"] == tensors["queue"][0] == (1 if survived == "old" else next_step)
        seen.add(survived)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert event > 20, "the hook has not seen the work"
    assert seen == {"old", "new"}
    save(store, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("limit", [100, 1500])
def test_a_full_disk_is_the_users_error_and_leaves_nothing(tmp_path: Path, limit: int, one_thread: None) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    engine = new_engine()
    big = {"big": torch.zeros(1000)}

    def save_with_little_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            store.save(2, engine, big, {})
        except UserError as error:
            assert "free some space" in str(error)
            os._exit(42)

    assert in_a_child(save_with_little_space) == 42
    assert newest(store) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_exported_weights_come_back_with_their_configuration(tmp_path: Path) -> None:
    tied = torch.randn(3, 3)
    weights: dict[str, Tensor] = {
        "a.weight": tied,
        "b.weight": tied,
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    export_weights(tmp_path / "export", weights, {"width": 3})
    tensors, config = load_weights(tmp_path / "export")
    torch.testing.assert_close(tensors, weights, rtol=0, atol=0)
    assert config == {"width": 3}
    with safetensors.safe_open(tmp_path / "export" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    export_weights(tmp_path / "export", {"c": torch.zeros(1)}, {})
    assert list(load_weights(tmp_path / "export")[0]) == ["c"]


def test_weights_that_are_not_there_or_broken_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors; give a folder"):
        load_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not this")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(tmp_path)
