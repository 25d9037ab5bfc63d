"""Jobs in this very process, or in the processes that torchrun started."""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from launch.backend import Backend
from launch.job import Job, carry_out
from launch.torchrun import meet, process_of
from pipeline.process import Process
from pipeline.pulse import LEAVE, Left, kill

_STOP = "stop"
_ENDING = "ending"
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 10.0  # for processes that wait for one that failed


class LocalBackend(Backend):
    """Runs jobs here, one after the other: the simplest launcher, for a laptop or a debugger.

    Under torchrun all of its processes take part in every job: rank 0 walks through the stages and puts each job
    into the store that torchrun's rendezvous offers; the others follow (`follow`).

    Args:
        gpus: GPUs of a worker; 0 computes on the CPU.
        threads: Threads of torch.
        environment: torchrun's variables, of os.environ.
    """

    slots = 0  # stages run in the calling thread

    def __init__(self, gpus: float, threads: int, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._process = process_of(gpus > 0, environment)
        self._threads = threads
        self._store: Store | None = None
        self._jobs = 0
        self._lost = False
        self._ending = threading.Event()  # of a follower
        self._folder: Path | None = None  # of the job that it takes part in, if that can leave

    @property
    def is_leader(self) -> bool:
        """See `Backend.is_leader`."""
        return self._process.is_main

    @property
    def can_restart(self) -> bool:
        """See `Backend.can_restart`: of torchrun's processes it is torchrun that starts new ones (--max-restarts)."""
        return self._process.world_size == 1

    def start(self) -> None:
        """Joins the other processes, where torchrun started some."""
        torch.set_num_threads(self._threads)
        if self._process.world_size == 1 or self._store is not None:
            return
        self._process.claim_device()  # before nccl meets, which takes the one that is current
        store, rank, world_size = meet()
        self._store = PrefixStore("jobs", store)
        mine = PrefixStore(self._agree_on_name(store), store)
        self._store = PrefixStore("jobs", mine)
        backend = "gloo" if self._process.device == "cpu" else "nccl"
        dist.init_process_group(backend, store=PrefixStore("group", mine), rank=rank, world_size=world_size)

    def _agree_on_name(self, store: Store) -> str:
        """Agrees on a name for what these processes say in the store.

        Torchrun's store outlives them: what others said there before a restart must not be taken for theirs. So each
        follower says a word that nobody has said before, and takes the name that answers this very word.
        """
        followers = range(1, self._process.world_size)
        if not self.is_leader:
            word = secrets.token_hex(8)
            store.set(f"hello/{self._process.rank}", word)
            while not store.check([f"welcome/{word}"]):
                self._pause()
            name = store.get(f"welcome/{word}").decode()
            store.set(f"{name}/here/{self._process.rank}", "1")
            return name
        name, heard = secrets.token_hex(8), dict.fromkeys(followers, b"")
        while not store.check([f"{name}/here/{rank}" for rank in followers]):
            for rank in followers:
                if store.check([f"hello/{rank}"]) and (said := store.get(f"hello/{rank}")) != heard[rank]:
                    heard[rank] = said
                    store.set(f"welcome/{said.decode()}", name)
            self._pause()
        return name

    def _pause(self) -> None:
        if self._ending.is_set():
            raise KeyboardInterrupt  # as SIGTERM ends what has nothing to save
        time.sleep(_POLL_SECONDS)

    def launch(self, job: Job, workers: int) -> BaseException | None:
        """See `Backend.launch`; `workers` is a wish here, for the processes are there already."""
        if self._store is None:
            return _attempt(job, self._process)
        if self._follower_ends():
            return Left(f"{job['stage']} was not started: a process of torchrun's got SIGTERM")
        if self._lost:
            return RuntimeError("processes of torchrun's did not come back from an earlier job; start the run again")
        self._announce(json.dumps(job))
        failure = _attempt(job, self._process)
        self._lost = not self._wait_for_followers(None if failure is None else _PATIENCE_SECONDS)
        self._follower_ends()
        return failure

    def end_process(self, pulse: Mapping[str, Any]) -> bool:
        """See `Backend.end_process`: one of torchrun's on this machine, which then starts all of them again."""
        here = pulse["host"] == socket.gethostname() and pulse["pid"] != os.getpid()
        return self._store is not None and here and kill(pulse["pid"], pulse["born"])

    def _end_all(self) -> None:
        """Lets the followers go."""
        if self._store is None and self._process.world_size > 1:
            self.start()  # nothing had to run, yet they wait
        if self._store is not None and self.is_leader:
            self._announce(_STOP)
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None

    def follow(self) -> None:
        """See `Backend.follow`: what every process but rank 0 does under torchrun.

        At SIGTERM the job that is under way is asked to leave, where it can, and no other one follows.
        """
        signal.signal(signal.SIGTERM, lambda number, frame: self._end())
        self.start()
        assert self._store is not None
        while (text := self._next_job(self._store)) is not None:
            job = json.loads(text)
            self._folder = Path(job["folder"]) if job.get("can_leave") else None
            if self._ending.is_set():
                self._end()  # the signal came before the job
            _attempt(job, self._process)
            self._folder = None
            if self._ending.is_set():
                self._store.set(_ENDING, "1")
            self._store.set(f"{self._jobs - 1}.{self._process.rank}", "over")
        if dist.is_initialized():
            dist.destroy_process_group()

    def _end(self) -> None:
        """What SIGTERM does to a follower."""
        self._ending.set()
        if self._folder is not None:
            (self._folder / LEAVE).touch()

    def _next_job(self, store: Store) -> str | None:
        """Waits for a job; None where there is none any more."""
        key = f"{self._jobs}"
        while not store.check([key]):
            if self._ending.is_set():
                store.set(_ENDING, "1")
                return None
            time.sleep(_POLL_SECONDS)
        self._jobs += 1
        job = store.get(key).decode()
        return None if job == _STOP else job

    def _follower_ends(self) -> bool:
        """Whether a follower got SIGTERM: then the whole run is to end, as the leader's own SIGTERM ends it."""
        assert self._store is not None
        if self._store.check([_ENDING]):
            self.ask_to_leave()
        return self._leaving

    def _wait_for_followers(self, seconds: float | None) -> bool:
        """Waits until all are through the job, for the first error of any of them counts; False if some hang."""
        assert self._store is not None
        keys = [f"{self._jobs - 1}.{rank}" for rank in range(1, self._process.world_size)]
        end = None if seconds is None else time.monotonic() + seconds
        while not self._store.check(keys):
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _announce(self, text: str) -> None:
        assert self._store is not None
        self._store.set(f"{self._jobs}", text)
        self._jobs += 1


def _attempt(job: Job, process: Process) -> BaseException | None:
    try:
        carry_out(job, process)
    except Exception as error:
        return error
    return None
