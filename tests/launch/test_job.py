"""Results and errors of worker processes travel as files."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError

from data_prep.errors import UserError
from launch.job import JobFailed, WorkerDied, carry_out, clear, collect
from pipeline.data.loader import WorkerLost
from pipeline.lost import is_loss
from pipeline.process import Process
from pipeline.together import RankFailedError


def job(folder: Path, function: str) -> dict[str, Any]:
    return {"stage": "a", "folder": str(folder), "function": f"tests.launch.jobs:{function}"}


def test_a_result_comes_back_and_leaves_no_trace_of_errors(tmp_path: Path) -> None:
    carry_out(job(tmp_path, "add_ranks"), Process())
    assert collect(tmp_path, None)["sum"] == 1
    assert not list(tmp_path.glob("error*"))


def test_only_the_first_rank_writes_the_result(tmp_path: Path) -> None:
    carry_out(job(tmp_path, "nothing"), Process(rank=1, world_size=2))
    with pytest.raises(WorkerDied):
        collect(tmp_path, None)


def test_a_users_mistake_on_any_rank_outranks_what_others_saw(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        carry_out(job(tmp_path, "crash"), Process(rank=0, world_size=2))
    with pytest.raises(UserError):
        carry_out(job(tmp_path, "refuse"), Process(rank=1, world_size=2))
    with pytest.raises(UserError, match=r"^bread=0 is too little; try 1$"):
        collect(tmp_path, ConnectionError("lost a partner"))


def test_of_several_failures_the_first_is_told_with_its_log(tmp_path: Path) -> None:
    for rank in (1, 0):
        with pytest.raises(ZeroDivisionError):
            carry_out(job(tmp_path, "crash"), Process(rank=rank, world_size=2))
    with pytest.raises(JobFailed, match=r"rank 1; see .*log\.rank1\.txt"):
        collect(tmp_path, None)
    assert "ZeroDivisionError" in (tmp_path / "log.rank1.txt").read_text()


def test_a_process_that_was_killed_left_no_error(tmp_path: Path) -> None:
    (tmp_path / "error.rank0.json").write_bytes(b" " * 8192)
    with pytest.raises(WorkerDied, match="actor died"):
        collect(tmp_path, RuntimeError("actor died\nat night"))


def test_an_error_can_be_recorded_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError):
        carry_out(job(tmp_path, "fill_disk"), Process())
    with pytest.raises(UserError, match="No space left on device"):
        collect(tmp_path, None)


def test_an_endless_message_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        carry_out(job(tmp_path, "complain"), Process())
    with pytest.raises(UserError) as caught:
        collect(tmp_path, None)
    assert 500 < len(str(caught.value)) <= 1000


def test_a_second_attempt_begins_without_the_firsts_files(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"old": True}))
    (tmp_path / "error.rank3.json").write_text("{}")
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_who_only_lost_a_partner_is_not_the_cause(tmp_path: Path) -> None:
    for rank, function in enumerate(("lose_partner", "crash")):
        with pytest.raises((RankFailedError, ZeroDivisionError)):
            carry_out({**job(tmp_path, function), "times": 9}, Process(rank=rank, world_size=2))
    with pytest.raises(JobFailed, match=r"ZeroDivisionError: a bug \(rank 1"):
        collect(tmp_path, None)


def test_a_worker_that_ended_without_a_word_is_named(tmp_path: Path) -> None:
    (tmp_path / "error.rank1.json").write_bytes(b" " * 8192)
    with pytest.raises(RankFailedError):
        carry_out({**job(tmp_path, "lose_partner"), "times": 9}, Process(world_size=2))
    with pytest.raises(WorkerDied, match="RankFailedError: rank 1 is gone") as died:
        collect(tmp_path, None)
    assert died.value.why == "worker 1 lost (it ended without a word)"
    (tmp_path / "pulse.rank0.json").write_text(json.dumps({"rank": 0, "stuck": "no step for 9 s after step 3"}))
    with pytest.raises(WorkerDied) as died:
        collect(tmp_path, None)
    assert died.value.why == "worker 0 stuck (no step for 9 s after step 3)"


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (DistNetworkError("Connection reset"), True),
        (WorkerLost("a loader process was killed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionError("the bucket does not answer"), False),
    ],
)
def test_which_errors_say_that_a_process_is_gone(error: Exception, loss: bool) -> None:
    assert is_loss(error) is loss
    outer = ValueError("outer")
    outer.__cause__ = error
    assert is_loss(outer) is loss
