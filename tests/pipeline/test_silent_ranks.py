"""A rank that is lost while a checkpoint is written is noticed soon, and one that only takes long is waited for."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.checkpoint import CheckpointStore
from pipeline.checkpoint_rules import Guard
from pipeline.lost import is_loss
from pipeline.process import Process
from tests.pipeline.distributed import RankPool
from tests.pipeline.stores import TroubledStore
from tests.pipeline.test_checkpoint import new_engine

SILENT = 4.0


def saving(process: Process, where: str, trouble: str) -> tuple[list[str], bool, float]:
    """What a rank was told in the background, whether its save failed by a loss, and how long that took."""
    told: list[str] = []
    store = CheckpointStore(where, process=process, guard=Guard(silent_seconds=SILENT, on_loss=told.append))
    store.save(1, new_engine(), {}, {})

    def strike(name: str) -> None:
        if "engine_1" in name:
            os.kill(os.getpid(), signal.SIGSTOP) if trouble == "stops" else time.sleep(2 * SILENT)

    TroubledStore.trouble = staticmethod(strike)
    began, lost = time.monotonic(), False
    try:
        store.save(2, new_engine(), {}, {})
    except Exception as error:
        lost = is_loss(error)
    finally:
        store.leave()
    return told, lost, time.monotonic() - began


@pytest.mark.timeout(240)
def test_a_rank_that_stops_while_it_saves_is_noticed_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    where, pool = f"{TroubledStore.protocol}://{tmp_path}/run", RankPool(2)
    try:
        pool.send(saving, (where, "takes long"))
        for told, lost, seconds in pool.collect(90):
            assert told == [] and not lost and seconds > 2 * SILENT
        assert [saved.step for saved in CheckpointStore(where).place.saved()] == [2, 1]
        shutil.rmtree(tmp_path / "run")
        pool.send(saving, (where, "stops"))
        assert pool.pipes[0].poll(60), "rank 0 waits for the one that is stopped"
        kind, (told, lost, seconds) = pool.pipes[0].recv()
        assert kind == "result" and lost and told == ["another worker was lost while a checkpoint was written"]
        assert SILENT <= seconds < SILENT + 10
        assert [saved.step for saved in CheckpointStore(where).place.saved()] == [1]
    finally:
        pool.kill()
