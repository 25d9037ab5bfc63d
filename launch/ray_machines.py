"""The machines of a Ray cluster: which of them answer, how many workers have room, and what became of a lost one.

Ray notices that a machine is gone after 15 s with its own settings, so machines are asked themselves.
"""

import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_prep.errors import UserError
from launch.cluster_config import ClusterConfig
from pipeline.pulse import kill

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 4.0  # until what an ended worker had is free again
_ANSWER_SECONDS = 1.0
_END_SECONDS = 20.0
_SLACK = 1e-6
_NODE_GONE = re.compile(r"node (has )?died|node was (terminated|removed)|node is dead", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|OutOfMemory|memory monitor", re.IGNORECASE)


class Machines:
    """The machines of the session, seen as room for workers.

    Args:
        config: What a worker needs, and how long to wait for it.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._asked, self._closed = 0, False

    def room(self) -> int:
        """How many more workers of a stage have room now, where `placement` wants them, on machines that answer."""
        import ray

        if ray.util.client.ray.is_connected():  # from outside of the cluster's network nothing else can be seen
            return self._fitting(ray.available_resources())
        free = ray._private.state.available_resources_per_node()
        each = [self._fitting(free.get(node["NodeID"], {})) for node in _answering()]
        if self._config.placement == "strict_pack":
            return max(each, default=0)
        return sum(min(1, room) for room in each) if self._config.placement == "strict_spread" else sum(each)

    def ask_for(self, workers: int) -> None:
        """Asks a cluster that grows by itself to have room for so many workers in all, until it is asked anew.

        Args:
            workers: 0 takes an earlier request back. A cluster that does not grow takes no notice.
        """
        if workers == self._asked or (self._closed and workers):
            return
        from ray.autoscaler.sdk import request_resources

        gpus = {"GPU": self._config.gpus_per_worker} if self._config.gpus_per_worker else {}
        request_resources(bundles=[{"CPU": self._config.cpus_per_worker, **gpus}] * workers)
        self._asked = workers

    def close(self) -> None:
        """Takes the last request back, before the session ends: the cluster would keep machines for nobody."""
        self._closed = True  # whoever still waits in a thread asks no more
        try:
            self.ask_for(0)
        except Exception as error:
            log.warning("the request for machines could not be taken back: %s", error, exc_info=error)

    def wait_for(self, counts: Sequence[int], is_shared: Callable[[], bool] = lambda: False) -> int:
        """Waits until there is room for the smallest count, and a moment for a larger one.

        Args:
            counts: Numbers of workers that would do, the smallest first.
            is_shared: Whether other jobs of ours have some of the room now: until they end, no waiting is too long.

        Returns:
            The largest of them that has room.

        Raises:
            UserError: There is not enough room for too long.
        """
        began = alone = time.monotonic()
        told = False
        try:
            while True:
                room, now = self.room(), time.monotonic()
                if room >= counts[-1] or (room >= counts[0] and now - began > _SETTLE_SECONDS):
                    return max(count for count in counts if count <= room)
                if is_shared():
                    alone = now
                if now - alone > max(self._config.wait_seconds, _SETTLE_SECONDS):
                    raise UserError(self._too_few(room, counts[0]))
                if now - alone > _SETTLE_SECONDS:
                    level, told = logging.DEBUG if told else logging.WARNING, True
                    log.log(level, "waiting for machines: there is room for %d workers, not for %d", room, counts[0])
                    self.ask_for(counts[-1])
                time.sleep(_POLL_SECONDS)
        finally:
            self.ask_for(0)

    def _fitting(self, free: Mapping[str, float]) -> int:
        config = self._config
        fitting = (free.get("CPU", 0.0) + _SLACK) // config.cpus_per_worker
        if config.gpus_per_worker:
            fitting = min(fitting, (free.get("GPU", 0.0) + _SLACK) // config.gpus_per_worker)
        return int(fitting)

    def _too_few(self, room: int, wanted: int) -> str:
        gpus = f" and {self._config.gpus_per_worker:g} GPUs" if self._config.gpus_per_worker else ""
        fix = f"set --cluster.workers {room}, or " if room else ""
        strict = self._config.placement.startswith("strict")
        placed = f" where cluster.placement={self._config.placement} wants them" if strict else ""
        return (
            f"cluster.workers={wanted} with {self._config.cpus_per_worker:g} CPUs{gpus} each{placed} were not to be "
            f"had within cluster.wait_seconds={self._config.wait_seconds:g}: the cluster has room for {room}; {fix}add "
            "machines and run the same command again: what is finished is kept"
        )


def _answering() -> Iterator[Mapping[str, Any]]:
    """Ray's machines whose Ray accepts a connection."""
    import ray

    for node in ray.nodes():
        if not node["Alive"]:
            continue
        try:
            at = (node["NodeManagerAddress"], node["NodeManagerPort"])
            socket.create_connection(at, timeout=_ANSWER_SECONDS).close()
        except OSError:
            continue
        yield node


def end_process(pulse: Mapping[str, Any]) -> bool:
    """Ends a process, wherever it runs, by its last sign of life; says whether it was there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if pulse["host"] == socket.gethostname():
        return kill(pulse["pid"], pulse["born"])
    node = next((node for node in _answering() if node["NodeManagerHostname"] == pulse["host"]), None)
    if node is None:
        return False  # Ray will find out that its machine is gone
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(kill).options(scheduling_strategy=there)
    try:
        return bool(ray.get(task.remote(pulse["pid"], pulse["born"]), timeout=_END_SECONDS))
    except ray.exceptions.RayError as error:
        log.info("process %s of %s could not be ended: %s", pulse["pid"], pulse["host"], error)
        return False


def explain(failure: BaseException | None) -> str | None:
    """What became of a lost worker, as far as Ray knows; None where it says nothing of use."""
    failures: Mapping[int, BaseException] = getattr(failure, "worker_failures", {})
    told = {rank: _end_of(error) for rank, error in sorted(failures.items())}
    known = [f"worker {rank} lost ({end})" for rank, end in told.items() if end]
    if known:
        return ", ".join(known)
    end = None if failure is None or failures else _end_of(failure)
    return f"a worker was lost ({end})" if end else None


def _end_of(error: BaseException) -> str | None:
    import ray

    error = getattr(error, "health_check_failure", error)
    if not isinstance(error, ray.exceptions.RayError):
        return None
    text = str(error)
    if isinstance(error, ray.exceptions.NodeDiedError) or _NODE_GONE.search(text):
        return "its machine is gone"
    if isinstance(error, ray.exceptions.OutOfMemoryError) or _NO_MEMORY.search(text.partition("Worker exit")[0]):
        return "Ray ended it for want of memory"
    gone = ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError
    return "its process was killed or crashed" if isinstance(error, gone) else None
