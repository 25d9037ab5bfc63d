"""What `trimline scale` says of a GPU that has no room; there is none here, so torch's numbers are put in its place."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_prep.files import write_json
from launch.scaling.limited import Ended
from launch.scaling.trial import outcome
from pipeline.measure.memory_limit import MemoryLimit
from pipeline.process import Process

GIB = 2**30


def test_a_gpu_without_room_is_out_of_memory_with_a_limit_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * GIB)  # no GPU is here to be asked
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB))
    with pytest.raises(torch.OutOfMemoryError), MemoryLimit(tmp_path, Process(), None) as limit:
        limit.step = 2
        raise torch.OutOfMemoryError("CUDA out of memory")
    found = outcome(tmp_path, Ended(1, False, 1.0), 60)
    assert (found["status"], found["peak_bytes"], found["step"]) == ("out of memory", 3 * GIB, 2)
    assert found["reason"] == "did not fit into the GPU's 8.0 GiB in step 3; it held 3.000 GiB"
    record = {"peak_bytes": 3 * GIB, "limit_bytes": 4 * GIB, "total_bytes": 8 * GIB, "step": 0}
    write_json(tmp_path / "over_memory.rank0.json", record)
    reason = outcome(tmp_path, Ended(1, False, 1.0), 60)["reason"]
    assert reason == "did not fit into the 4 GiB that it may have before the end of its first step; it held 3.000 GiB"
