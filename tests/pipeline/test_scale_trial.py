"""What a trial's process measures: bytes kept by module, a limit on memory, losses of a fixed batch."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline.measure.memory_limit import OVER_MEMORY, MemoryLimit, clear_over, read_over
from pipeline.measure.saved_bytes import saved_by_module, saved_bytes
from pipeline.measure.scale_trial import Enough, StepWatch, TrialPlan, loaders_held, looks_after, part_of
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_batch, small_model


def task_of(backbone: BackboneName, queue: int = 8) -> Pretraining:
    words = Vocabulary(mask=4, size=WORDS)
    pruning = PruningConfig(method="none")
    generator = torch.Generator().manual_seed(0)
    return Pretraining(small_model(backbone), ObjectiveConfig(queue=queue), pruning, words, scale, generator)


def test_bytes_stand_under_the_module_that_kept_them_and_add_up() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.GELU(), nn.Linear(5, 3)))
    x_24 = torch.randn(2, 4, requires_grad=True)

    def forward() -> torch.Tensor:
        return model(x_24).exp().sum()

    found = saved_by_module(forward, model.parameters(), model)
    floats = {"0": 2 * 4, "1.0": 2 * 5, "1.1": 2 * 5, "": 2 * 3}  # input, before GELU, after it, the result of exp
    assert found == {name: 4 * count for name, count in floats.items()}
    assert sum(found.values()) == saved_bytes(forward, model.parameters())
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_hooks_go_where_a_forward_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(RuntimeError):
        saved_by_module(lambda: model(torch.randn(2, 3)), [], model)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_a_backbones_parts_keep_all_that_its_losses_do() -> None:
    task = task_of("albef")
    standing = [*task.module.parameters(), *task.module.buffers(), *task.tensors().values()]
    found = saved_by_module(lambda: task.losses(task.module, small_batch(4), 1.0), standing, task.module)
    parts = {part_of(name, 2) for name in found}
    assert {"visual_encoder", "text_encoder", "fusion", "losses"} <= parts
    assert not any(part.startswith(("momentum", "model")) for part in parts)  # the momentum tower keeps nothing
    task.drop_update()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual_encoder.blocks.3.attn", "visual_encoder"),
        ("model.text_encoder.bert.encoder.layer.1.output", "text_encoder"),
        ("model.text_encoder.bert.encoder.layer.2.output", "fusion"),
        ("model.text_encoder.bert.embeddings", "text_encoder"),
        ("", "losses"),
        ("model", "losses"),
    ],
)
def test_parts_have_names(name: str, part: str) -> None:
    assert part_of(name, 2) == part


_GROW = """
import sys, time, torch
from pathlib import Path
from pipeline.measure.memory_limit import MemoryLimit
from pipeline.log_facts import process_peak_bytes
from pipeline.process import Process
with MemoryLimit(Path(sys.argv[1]), Process(), process_peak_bytes() + 2**26) as limit:
    limit.step = 3
    kept = torch.ones(int(sys.argv[2]) * 2**18)
    del kept
    time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(("mib", "seconds"), [(128, 20.0), (16, 0.0)])
def test_a_process_ends_over_its_limit_even_if_only_for_a_moment(tmp_path: Path, mib: int, seconds: float) -> None:
    ended = subprocess.run([sys.executable, "-c", _GROW, str(tmp_path), str(mib), str(seconds)], check=False)
    record = read_over(tmp_path)
    if mib == 16:
        assert (ended.returncode, record) == (0, None)
        return
    assert ended.returncode == OVER_MEMORY and record is not None
    assert record["step"] == 3 and record["peak_bytes"] > record["limit_bytes"]
    clear_over(tmp_path)
    assert read_over(tmp_path) is None


_PEAKS = """
import sys, torch
from pathlib import Path
from pipeline.log_facts import process_peak_bytes
from pipeline.measure.memory_limit import MemoryLimit
from pipeline.process import Process
with MemoryLimit(Path(sys.argv[1]), Process(), 2**40) as limit:
    kept = torch.ones(2**26)
    del kept
    before = process_peak_bytes()
    limit.forget_peak()
    print(before, process_peak_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not let a peak be forgotten")
def test_what_was_held_before_the_first_step_is_not_in_its_peak(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _PEAKS, str(tmp_path)], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 0.9 * 2**28


def test_a_gpus_peak_begins_anew_with_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))  # there is no GPU here
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    monkeypatch.setattr("pipeline.measure.scale_trial._largest", lambda value, device: value)
    process = Process(device="cuda:0")
    prepared = SimpleNamespace(stage=SimpleNamespace(process=process))
    watch = StepWatch(cast(Any, prepared), TrialPlan(steps=2), MemoryLimit(tmp_path, process, None), None)
    with pytest.raises(Enough):
        for _ in watch.through(cast(Any, iter([1, 2]))):
            calls.append("step")
    assert calls == ["reset", "step", "synchronize", "step", "synchronize"] and watch.peak == 2**30


def test_the_wait_for_data_is_in_a_steps_time(tmp_path: Path) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    prepared = SimpleNamespace(stage=SimpleNamespace(process=Process()))
    watch = StepWatch(cast(Any, prepared), TrialPlan(steps=3), MemoryLimit(tmp_path, Process(), None), None)
    with pytest.raises(Enough):
        for _ in watch.through(cast(Any, slow())):
            time.sleep(0.01)
    assert all(wait >= 0.02 and step >= wait + 0.01 for wait, step in zip(watch.waits, watch.seconds, strict=True))


def _count(counter: Any) -> None:
    while True:
        counter.value += 1
        time.sleep(0.001)


def test_loader_processes_stand_still_while_the_fixed_batch_is_looked_at() -> None:
    context = multiprocessing.get_context("fork")  # as the loader starts its own
    counter = context.Value("L", 0, lock=False)
    loader = context.Process(target=_count, args=(counter,), daemon=True)
    loader.start()
    try:
        wait_for(lambda: counter.value > 0)
        with loaders_held():
            wait_for(lambda: " T " in Path(f"/proc/{loader.pid}/stat").read_text())
            held = counter.value
            time.sleep(0.05)
            assert counter.value == held
        wait_for(lambda: counter.value > held)
    finally:
        loader.kill()
        loader.join()


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_limit_watches_nothing(tmp_path: Path) -> None:
    with MemoryLimit(tmp_path, Process(), None) as limit:
        assert limit._thread is None
    assert read_over(tmp_path) is None


def test_the_first_look_comes_after_memory_is_measured() -> None:
    def looks(steps: int, every: int) -> list[int]:
        plan = TrialPlan(steps=steps, evaluate_every=every)
        return [step for step in range(1, steps + 1) if looks_after(step, plan)]

    assert (looks(8, 3), looks(4, 1), looks(1, 5)) == ([2, 3, 6, 8], [2, 3, 4], [1])


@pytest.mark.parametrize("backbone", ["albef", "clip", "meter", "blip"])
def test_the_losses_of_a_fixed_batch_are_the_same_again_and_move_nothing(backbone: BackboneName) -> None:
    task, batch = task_of(backbone), small_batch(6)
    task.module.eval()
    before = {name: tensor.clone() for name, tensor in task.tensors().items()}
    state = torch.get_rng_state()
    first, second = (task.fixed_losses(task.module, batch) for _ in range(2))
    assert first and all(torch.equal(first[name], second[name]) for name in first)
    assert not any(value.requires_grad for value in first.values())
    assert torch.equal(state, torch.get_rng_state())
    task.after_update(1.0)  # nothing was put aside for the queue
    assert all(torch.equal(before[name], tensor) for name, tensor in task.tensors().items())


def test_a_fixed_batchs_contrast_does_not_hang_on_the_queue() -> None:
    short, long = task_of("albef", queue=4), task_of("albef", queue=64)
    batch = small_batch(6)
    for task in (short, long):
        task.module.eval()
    of = [task.fixed_losses(task.module, batch)["itc"] for task in (short, long)]
    assert torch.equal(of[0], of[1])
