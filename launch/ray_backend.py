"""Worker processes on a Ray cluster: several workers through Ray Train, a single one as a plain Ray task.

A job of one worker needs no process group and no controller, so a task does; it starts in half the time.

Facts this file rests on, found in Ray 2.60:
- Ray's processes end with the thread that started them (Linux's parent-death signal), so `start` must be called in
  a thread that lives as long as the run: the main thread.
- `TorchTrainer.fit` may be called from any thread, and from several at once.
- Reusing a run name resumes the old run, so each attempt has a fresh one.
- Unix socket paths may have 107 characters, so the session's folder lies directly under /tmp.
- `ray.init` waits 30 s for the machine's own Ray, which no option changes, raises a bare Exception then, and leaves
  processes behind.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.lock import in_use, remove_left
from data_prep.redact import redact
from launch.backend import Backend
from launch.cluster_config import ClusterConfig
from launch.graph import StageLeft
from launch.job import Job, carry_out
from launch.machine import available_cpus, available_gpus
from launch.ray_machines import Machines, end_process, explain
from pipeline.loopback import loopback_variables

log = logging.getLogger(__name__)

_SESSION_PREFIX = "trimline-run-"
_OBJECT_STORE_BYTES = 100 * 2**20  # only small messages pass through it
# Of 107: the others are our folder's, /session_2026-01-01_00-00-00_000000_1234567 and /sockets/plasma_store.
_MAX_SOCKET_FOLDER = 13
_STARTS = 3
_ANSWER_SECONDS = 10.0

# For every process of a local cluster; each of them inherits it from the one that started it.
_RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on a laptop: every port is bound to loopback
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone where no GPU is asked for
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call that comes after the end must not start another cluster
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run trimline` must not make an environment per worker
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a local cluster has no spot machines
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # notices the end of a short stage at once
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing home
    "RAY_enable_metrics_collection": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # the kernel decides who is out of memory, not a share of the machine
}


class RayBackend(Backend):
    """Workers of one Ray session that all stages share.

    Args:
        config: Workers, their CPUs and GPUs, and the cluster's address if one runs already.
        storage: Folder for what Ray Train keeps of a run, inside the run folder.
    """

    def __init__(self, config: ClusterConfig, storage: Path) -> None:
        super().__init__()
        self._config = config
        self._storage = storage
        self._machines = Machines(config)
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._session: Path | None = None
        self._hold = contextlib.ExitStack()  # of the session's folder
        cpus = config.most * config.cpus_per_worker if config.address else available_cpus()
        self.slots = max(1, int(cpus // config.cpus_per_worker))
        if config.gpus_per_worker and not config.address:
            self.slots = max(1, min(self.slots, int(available_gpus() // config.gpus_per_worker)))

    def start(self) -> None:
        """Joins the cluster at the given address, or starts one on this machine, bound to loopback.

        Raises:
            UserError: where the address does not answer.
        """
        try:
            if self._config.address:
                self._join(self._config.address)
            else:
                self._start_local()
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._ready.set()

    def launch(self, job: Job, workers: int) -> BaseException | None:
        """See `Backend.launch`."""
        self._wait_until_started()
        try:
            self._machines.ask_for(0)
            if workers == 1:
                self._run_task(job)
            else:
                self._run_trainer(job, workers)
        except Exception as error:
            return error
        return None

    def available(self, counts: Sequence[int]) -> int:
        """See `Backend.available`."""
        self._wait_until_started()
        return self._machines.wait_for(counts, self.has_jobs)

    def _wait_until_started(self) -> None:
        """Waits for `start`; where that failed, what it raised is told by who called it, and no worker was lost."""
        self._ready.wait()
        if self._failed is not None:
            raise StageLeft("Ray did not start") from self._failed

    def could_have(self, more: Sequence[int], workers: int) -> bool:
        """See `Backend.could_have`."""
        if not more or self._machines.room() + workers >= more[0]:
            return bool(more)
        self._machines.ask_for(more[-1])  # until it has them, or another job begins
        return False

    def end_process(self, pulse: Mapping[str, Any]) -> bool:
        """See `Backend.end_process`."""
        return end_process(pulse)

    def explain(self, failure: BaseException | None) -> str | None:
        """See `Backend.explain`."""
        return explain(failure)

    def _end_all(self) -> None:
        """Ends the local cluster, or leaves the joined one."""
        import ray

        self._ready.set()
        self._machines.close()
        ray.shutdown()
        if self._session is not None:
            shutil.rmtree(self._session, ignore_errors=True)
        self._hold.close()

    def keep_logs(self, folder: Path) -> None:
        """Copies the local session's logs, for a failure that they may explain."""
        logs = self._session and self._session / "session_latest" / "logs"
        if logs is None or not logs.is_dir():
            return
        shutil.copytree(
            logs, folder, copy_function=_copy_without_secrets, dirs_exist_ok=True, ignore_dangling_symlinks=True
        )

    def _start_local(self) -> None:
        """Starts a cluster, and once more where this machine is too busy to do it in Ray's time.

        Raises:
            UserError: after the last try.
        """
        for start in range(1, _STARTS + 1):
            try:
                return self._start_session()
            except Exception as error:
                last = start == _STARTS
                self._end_session(keep_folder=last)  # its logs may say more: see `keep_logs`
                if not (type(error) is Exception or isinstance(error, RuntimeError | OSError)):
                    raise  # not what Ray tells of processes that do not start
                if last:
                    raise _not_started(error) from error
                log.warning("Ray did not start in time; trying again")

    def _end_session(self, keep_folder: bool) -> None:
        """Ends what a start that failed has left."""
        if self._session is None:
            return
        _end_processes(self._session)
        if not keep_folder:
            shutil.rmtree(self._session, ignore_errors=True)
            self._hold.close()

    def _start_session(self) -> None:
        remove_left(_short_folder(), _SESSION_PREFIX)  # of runs that were killed
        self._session = Path(tempfile.mkdtemp(prefix=f"{_SESSION_PREFIX}{os.getpid()}-", dir=_short_folder()))
        self._hold.enter_context(in_use(self._session))
        environment = {**_RAY_ENVIRONMENT, **self._worker_environment(), **loopback_variables()}
        with _environment(environment), _kept_signal_handlers():
            import ray  # reads some of these variables when it is imported

            # Whoever imported it earlier read nothing of that, and its ports would be open to all.
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
            logging.getLogger("ray").setLevel(logging.ERROR)
            ray.init(
                address="local",  # not RAY_ADDRESS
                num_cpus=max(available_cpus(), int(self._config.cpus_per_worker)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(self._session),
                _node_ip_address="127.0.0.1",
            )

    def _join(self, address: str) -> None:
        import ray

        _check_that_somebody_answers(address)
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a restart is ours to decide
        try:
            with _kept_signal_handlers():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                    runtime_env={"env_vars": self._worker_environment()},
                )
        except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from error

    def _worker_environment(self) -> dict[str, str]:
        threads = str(max(1, int(self._config.cpus_per_worker)))
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if not self._config.gpus_per_worker:
            variables["DS_ACCELERATOR"] = "cpu"
        return variables

    def _run_task(self, job: Job) -> None:
        import ray

        # A process of its own for each job, as with a trainer: nothing of an earlier stage is left in it.
        task = ray.remote(max_calls=1, max_retries=0)(_run_alone)
        cpus, gpus = self._config.cpus_per_worker, self._config.gpus_per_worker
        ray.get(task.options(num_cpus=cpus, num_gpus=gpus, name=str(job["stage"])).remote(dict(job), bool(gpus)))

    def _run_trainer(self, job: Job, workers: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from launch.ray_rendezvous import BoundTorchConfig

        gpus = self._config.gpus_per_worker
        resources = {"CPU": self._config.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
        trainer = TorchTrainer(
            _run_together,
            train_loop_config={"job": dict(job), "gpu": bool(gpus)},
            torch_config=BoundTorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(gpus),
                resources_per_worker=resources,
                placement_strategy=self._config.placement.upper(),
            ),
            run_config=RunConfig(
                name=f"{job['stage']}-{secrets.token_hex(4)}",
                storage_path=str(self._storage.resolve()),
                # A restart is ours to decide, and a controller that cannot place its workers would try forever.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
            ),
        )
        trainer.fit()


def _run_alone(job: dict[str, Any], gpu: bool) -> None:
    """The body of a task: the only worker of a job."""
    from pipeline.process import Process

    carry_out(job, Process(device="cuda:0" if gpu else "cpu"))


def _run_together(config: dict[str, Any]) -> None:
    """The body of a Ray Train worker: one of several of a job, with the process group made."""
    import ray.train
    import ray.train.torch

    from pipeline.process import Process

    context = ray.train.get_context()
    device = str(ray.train.torch.get_device()) if config["gpu"] else "cpu"
    process = Process(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=device,
    )
    carry_out(config["job"], process)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the processes that are started inside; those that the user has set stay."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Puts the handlers for SIGINT and SIGTERM back, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy_without_secrets(source: str, target: str) -> None:
    """Copies a log of Ray's, which names commands and variables as it likes."""
    text = Path(source).read_text(encoding="utf-8", errors="replace")
    Path(target).write_text(redact(text), encoding="utf-8")


def _short_folder() -> Path:
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= _MAX_SOCKET_FOLDER else Path("/tmp")


def _check_that_somebody_answers(address: str) -> None:
    """Looks in seconds for what Ray looks for in minutes, with much noise; `auto` is Ray's to find."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at cluster.address={redact(address)} ({' '.join(redact(str(error)).split())[:200]}); "
        "start one with `ray start --head`, or leave the address out for a local one"
    )


def _not_started(error: Exception) -> UserError:
    return UserError(
        f"Ray did not start in {_STARTS} tries ({' '.join(redact(str(error)).split())[:200]}); this machine may be too "
        "busy, or out of memory or of space in its temporary folder: run the same command again, or go without Ray: "
        "--launcher local --cluster.workers 1 --engine.name torch"
    )


def _end_processes(folder: Path) -> None:
    """Ends a session's processes, which have its folder in their command lines."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # gone meanwhile, or not ours
            if f"{folder}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
