"""Jobs that the tests let worker processes carry out, each in milliseconds."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.files import write_json
from pipeline.process import Process
from pipeline.pulse import FilePulse, Left
from pipeline.together import RankFailedError


def add_ranks(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Adds rank + 1 over all workers, through the process group where there is one."""
    total = torch.tensor(process.rank + 1)
    if process.world_size > 1:
        dist.all_reduce(total)
    return {
        "sum": int(total),
        "world_size": process.world_size,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "pid": os.getpid(),
    }


def refuse(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Finds a mistake of the user's on the last rank only."""
    if process.rank == process.world_size - 1:
        raise UserError("bread=0 is too little; try 1")
    return {}


def crash(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Fails by a bug."""
    raise ZeroDivisionError("a bug")


def die_once(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Is killed at the first attempt, succeeds at the second."""
    mark = Path(job["folder"]) / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


def nothing(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Does nothing."""
    return {}


def fill_disk(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Writes a file, which fails where the disk is full."""
    write_json(Path(job["folder"]) / "big.json", [0])
    return {}


def complain(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Finds a mistake that takes many words."""
    raise UserError("é" * 100_000)


def blurt(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Logs, prints and raises what nobody should see."""
    secret = os.environ["WANDB_API_KEY"]
    logging.getLogger("somebody").warning("the key is %s", secret)
    raise ConnectionError(f"PUT https://me:{secret}@host/x?token={secret} with {secret} failed")


def lose_partner(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Loses a partner as often as the job says, then succeeds."""
    starts = Path(job["folder"]) / "starts"
    with open(starts, "a") as file:
        file.write("x")
    count = len(starts.read_text())
    if count <= job["times"]:
        raise RankFailedError("rank 1 is gone")
    return {"starts": count}


def leave_when_asked(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Gets SIGTERM, and leaves as soon as it is asked to."""
    pulse = FilePulse(Path(job["folder"]), process.rank)
    os.kill(os.getpid(), signal.SIGTERM)
    while not pulse.asked_to_leave():
        time.sleep(0.01)
    raise Left("training left after step 1, as it was asked to")


def wait(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """Says that it has begun, and never ends by itself."""
    (Path(job["folder"]) / "begun").touch()
    while True:
        time.sleep(1)
