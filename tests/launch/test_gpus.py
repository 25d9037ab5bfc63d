"""Each process takes the GPU that is its own."""

import pytest
import torch

from data_prep.errors import UserError
from launch.local_backend import LocalBackend
from pipeline.process import Process


def test_a_process_on_the_cpu_claims_nothing() -> None:
    Process().claim_device()
    assert not torch.cuda.is_initialized()


def test_a_gpu_that_is_not_there_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"rank 5 is to train on cuda:2, but .* has 2 GPUs.*gpus_per_worker 0"):
        Process(rank=5, world_size=6, local_rank=2, device="cuda:2").claim_device()


def test_each_of_torchruns_processes_claims_its_own_before_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[torch.device] = []

    def met(*_: object) -> None:
        raise ConnectionError("they meet only now")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", claimed.append)
    monkeypatch.setattr("launch.torchrun.rendezvous", met)
    backend = LocalBackend(1.0, 1, {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"})
    with pytest.raises(ConnectionError, match="only now"):
        backend.start()
    assert claimed == [torch.device("cuda:3")]
