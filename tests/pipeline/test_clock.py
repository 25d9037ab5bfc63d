"""How long training lasts, and the learning rate meanwhile."""

import pytest
import torch

from pipeline.clock import Clock, ScheduleConfig


def test_the_learning_rate_warms_up_and_ends_at_its_final_share() -> None:
    schedule = ScheduleConfig(warmup_share=0.1, final_scale=0.2)
    assert [schedule.lr_scale(p) for p in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0, 0.5, 1.0, 0.2])


def test_a_clock_without_budget_counts_steps_only() -> None:
    clock = Clock(10, None, 1000.0)
    assert [clock.tick(step).progress for step in (0, 5, 10)] == [0, 0.5, 1.0]


def test_processes_agree_through_a_tensor_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []
    monkeypatch.setattr("pipeline.clock.world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, source: seen.append(tensor.device))
    with pytest.raises(RuntimeError):  # a meta tensor has no values to read
        Clock(10, None, 1000.0, device="meta").tick(1)
    assert [device.type for device in seen] == ["meta"]
