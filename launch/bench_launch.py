"""`trimline bench launch`: what Ray, DeepSpeed and checkpoints cost a real step, against a bare loop."""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import launch
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch import machine, preflight
from launch.answers import Answer
from launch.backend import Backend
from launch.bench_launch_work import FIRST, Gate, go_file, lap_file
from launch.bench_progress import interleaved
from launch.config import RunConfig
from launch.flops import PUBLISHED_WORDS
from launch.graph import Attempt
from launch.job import LOG, Job, collect
from launch.ray_backend import RayBackend
from launch.reading import as_json, read_config
from launch.recipes import find_recipe
from launch.report.table import aligned
from launch.report.words import ABSENT
from launch.stages import build_stages
from pipeline.engine_config import autocast_dtype
from pipeline.measure.timing import paired_ratios, spread

REFERENCE, WHOLE = "bare", "trimline"
INCLUDES = (
    "whole steps, from the loader to the optimizer; a lap of `trimline` begins one checkpoint and waits until it is "
    "on the disk; Ray's own processes are there during all laps"
)
_WORK = "launch.bench_launch_work"
_SAMPLES = 256  # drawn pictures; they come again and again
_SECONDS_TO_STOP = 10.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Way:
    """How a training is carried out.

    Attributes:
        function: Of `launch.bench_launch_work`.
        engine: Of the engine's configuration.
        checkpoints: Whether it makes any.
        by_ray: Whether Ray starts it; else it is a plain process.
    """

    function: str
    engine: str
    checkpoints: bool
    by_ray: bool


WAYS: Mapping[str, Way] = {
    REFERENCE: Way("bare", "torch", False, False),
    "loop": Way("stage", "torch", False, False),
    "deepspeed": Way("stage", "deepspeed", False, False),
    WHOLE: Way("stage", "deepspeed", True, True),
}


class PlainBackend(Backend):
    """A process of its own for each job, and nothing else.

    Args:
        threads: Of torch.
        device: Torch's device string.
    """

    slots = 1

    def __init__(self, threads: int, device: str) -> None:
        super().__init__()
        self._threads = str(threads)
        self._device = device
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Nothing to do."""

    def launch(self, job: Job, workers: int) -> BaseException | None:
        """See `Backend.launch`."""
        path = Path(job["folder"]) / "job.json"
        write_json(path, dict(job))
        root = str(Path(launch.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": self._threads, "TOKENIZERS_PARALLELISM": "false"}
        with open(path.with_name(LOG), "ab") as log:
            command = [sys.executable, "-m", _WORK, str(path), self._device]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
        code = self._process.wait()
        return None if code == 0 else RuntimeError(f"its process ended with code {code}")

    def _end_all(self) -> None:
        """Ends the process."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Contender:
    """A training in processes of its own that goes on a lap at a time.

    Args:
        backend: Started already.
        job: What is trained; its folder is there.
    """

    def __init__(self, backend: Backend, job: Job) -> None:
        self._backend = backend
        self._job = job
        self._folder = Path(job["folder"])
        self._lap = itertools.count()
        self._result: dict[str, Any] = {}
        self._failure: Exception | None = None
        began = time.time()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.first_step_seconds: float = self._answer(FIRST)["time"] - began

    def lap(self) -> dict[str, float]:
        """Lets it run one."""
        lap = next(self._lap)
        (self._folder / go_file(lap)).touch()
        return self._answer(lap_file(lap))

    def result(self) -> dict[str, Any]:
        """Waits for its end."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._result

    def _run(self) -> None:
        try:
            self._result = collect(self._folder, self._backend.launch(self._job, 1))
        except Exception as error:
            self._failure = error

    def _answer(self, name: str) -> dict[str, float]:
        path = self._folder / name
        while not path.exists():
            if not self._thread.is_alive():
                raise self._failure or RuntimeError(f"{self._folder.name} ended too early; see {self._folder / LOG}")
            time.sleep(_POLL_SECONDS)
        answer: dict[str, float] = read_json(path)
        return answer


def launch_bench_command(options: argparse.Namespace) -> Answer:
    """`trimline bench launch`.

    Raises:
        UserError: Options that nothing can be measured with.
    """
    _check(options)
    place = None if options.out is None else Path(options.out).expanduser()
    with tempfile.TemporaryDirectory(prefix="trimline-bench-", dir=place) as scratch:
        config, checkpoint_seconds = _config(options, Path(scratch))
        preflight.check(config, Path(scratch))
        _write_shards(config, Path(scratch))
        result = _measure(config, options, Path(scratch))
    result |= _as_configured(result, checkpoint_seconds)
    return 0, result, launch_bench_text(result)


def _check(options: argparse.Namespace) -> None:
    for name, least in {"batch": 2, "every": 3, "rounds": 1, "warmup": 0, "threads": 1}.items():
        if getattr(options, name) < least:
            raise UserError(f"bench.{name}={getattr(options, name)} must be at least {least}")
    if options.out is not None and not Path(options.out).expanduser().is_dir():
        raise UserError(f"bench.out={options.out} is not a folder; give one that is there, on the disk to measure")


def _config(options: argparse.Namespace, out: Path) -> tuple[RunConfig, float]:
    """The recipe of the backbone's kind with a small data set and one worker put in; its time between checkpoints."""
    kind = options.model.partition("_")[0]
    files = [find_recipe(f"configs/models/{options.model}.yaml"), find_recipe(f"configs/pretrain/{kind}_4m.yaml")]
    steps = _gate(options, out, checkpoints=True).total
    given: dict[str, Any] = {
        "out": str(out),
        "seed": options.seed,
        "cluster.workers": 1,
        "cluster.cpus_per_worker": options.threads,
        "cluster.gpus_per_worker": int(machine.available_gpus() > 0),
        "data.name": "shapes",
        "data.sizes": {"train": _SAMPLES, "val": 0, "test": 0, "unseen": 0},
        "loader.streams": 1,
        "loader.workers": 0,
        "model.text.vocab_size": PUBLISHED_WORDS.get(kind, 0),
        "pretrain.loop.samples": steps * options.batch,
        "pretrain.loop.global_batch": options.batch,
        "checkpoint.keep_every_steps": options.every,
        "evaluate.retrieval_splits": [],
        "evaluate.pictures": 0,
    }
    if kind == "meter":
        given["model.text.pad_id"] = 0  # of the tokenizer that is trained here
    if options.image_size is not None:
        sides = ("loader.height", "loader.width", "model.vision.height", "model.vision.width_px")
        given |= dict.fromkeys(sides, options.image_size)
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    recipe = read_config(RunConfig, files, words)
    words += [f"--data.image_size={recipe.loader.height}", "--pretrain.loop.checkpoint_seconds=1e9"]
    return read_config(RunConfig, files, words), recipe.pretrain.loop.checkpoint_seconds


def _write_shards(config: RunConfig, out: Path) -> None:
    shard = build_stages(config, out, PlainBackend(1, "cpu"), "pretrain")[0]
    shard.folder.mkdir(parents=True)
    shard.run(Attempt(folder=shard.folder, resumed=False))


def _gate(options: argparse.Namespace, folder: Path, checkpoints: bool) -> Gate:
    where = folder / "checkpoints" if checkpoints else None
    return Gate(folder, options.every, options.warmup + options.rounds, where, torch.device("cpu"))


def _job(name: str, config: RunConfig, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """See `pipeline.worker.run_job`."""
    way, run = WAYS[name], as_json(config)
    run["engine"]["name"] = way.engine
    if not way.checkpoints:
        run["checkpoint"]["keep_every_steps"] = 0
    folder = out / "stages" / name
    folder.mkdir(parents=True)
    return {
        "stage": name, "kind": "pretrain", "function": f"{_WORK}:{way.function}", "folder": str(folder),
        "data": str(out / "data"), "tokenizer": str(out / "tokenizer"), "run": run, "budget_seconds": None,
        "fingerprint": "", "group": "bench", "threads": options.threads,
        "gate": {"steps": options.every, "laps": options.warmup + options.rounds, "checkpoints": way.checkpoints},
    }  # fmt: skip


def _measure(config: RunConfig, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    names = list(WAYS) if options.parts else [REFERENCE, WHOLE]
    device = "cuda:0" if config.cluster.gpus_per_worker else "cpu"
    with ExitStack() as stack:
        contenders = {}
        for name in names[:-1]:
            plain = stack.enter_context(_stopped(PlainBackend(options.threads, device)))
            contenders[name] = Contender(plain, _job(name, config, options, out))
        ray = stack.enter_context(_stopped(RayBackend(config.cluster, out / "ray")))
        began = time.monotonic()
        ray.start()
        cluster_seconds = time.monotonic() - began
        contenders[WHOLE] = Contender(ray, _job(WHOLE, config, options, out))
        laps = interleaved("launch", {name: contender.lap for name, contender in contenders.items()}, options)
        peaks = {name: contender.result()["peak_bytes"] for name, contender in contenders.items()}
    dtype = autocast_dtype(config.engine, torch.device(device))
    return {
        "reference": REFERENCE,
        "device": device.partition(":")[0],
        "device_name": torch.cuda.get_device_name() if device != "cpu" else machine.hardware()["processor"],
        "model": options.model,
        "image_size": config.loader.height,
        "dtype": "float32" if dtype is None else str(dtype).removeprefix("torch."),
        "zero_stage": config.engine.on(1).zero_stage,
        **{name: getattr(options, name) for name in ("batch", "every", "threads", "rounds", "warmup", "seed")},
        "first_step_seconds": contenders[WHOLE].first_step_seconds,
        "cluster_seconds": cluster_seconds,
        "checkpoint_bytes": laps[WHOLE][-1]["checkpoint_bytes"],
        "rows": [_row(name, laps, options.every, peaks[name]) for name in laps],
        "includes": INCLUDES,
        "commit": machine.git_commit(),
    }


@contextmanager
def _stopped(backend: Backend) -> Iterator[Backend]:
    try:
        yield backend
    finally:
        backend.stop()


def _row(name: str, laps: Mapping[str, Sequence[Mapping[str, float]]], every: int, peak: int) -> dict[str, Any]:
    seconds = {who: [lap["seconds"] / every for lap in laps[who]] for who in (name, REFERENCE)}
    heads = {who: [lap["head_seconds"] for lap in laps[who]] for who in (name, REFERENCE)}
    ratios = spread(paired_ratios(seconds[REFERENCE], seconds[name]))
    return {
        "name": name,
        "value": spread(seconds[name]).median,
        "unit": "s",
        "ratio": ratios.median,
        "ratio_min": ratios.least,
        "ratio_q1": ratios.low,
        "ratio_q3": ratios.high,
        "cost": 1 / ratios.median - 1,
        "step_cost": 1 / spread(paired_ratios(heads[REFERENCE], heads[name])).median - 1,
        "checkpoint_seconds": spread([_added(lap, every) for lap in laps[name]]).median,
        "flops_ratio": None,
        "peak_bytes": peak,
    }


def _added(lap: Mapping[str, float], every: int) -> float:
    """Seconds by which a lap is longer than its steps before the checkpoint foretell."""
    return lap["seconds"] - every * lap["head_seconds"] / lap["head_steps"]


def _as_configured(result: Mapping[str, Any], checkpoint_seconds: float) -> dict[str, float]:
    """What all costs together where checkpoints are made as often as the recipe says."""
    whole = next(row for row in result["rows"] if row["name"] == WHOLE)
    cost = whole["step_cost"] + whole["checkpoint_seconds"] / checkpoint_seconds
    return {"recipe_checkpoint_seconds": checkpoint_seconds, "recipe_cost": cost}


def launch_bench_text(result: Mapping[str, Any]) -> str:
    """The result for people: what was measured, a table, how to read it."""
    whole = next(row for row in result["rows"] if row["name"] == WHOLE)
    cells = [["way", "s/step", "ratio", "quartiles", "cost", "peak MB"]]
    for row in result["rows"]:
        quartiles = f"{row['ratio_q1']:.3f} to {row['ratio_q3']:.3f}"
        cost = ABSENT if row["name"] == REFERENCE else f"{row['cost']:+.1%}"
        peak = f"{row['peak_bytes'] / 1e6:.0f}"
        cells.append([row["name"], f"{row['value']:.3f}", f"{row['ratio']:.3f}", quartiles, cost, peak])
    title = (
        f"{result['model']}, {result['image_size']} px, batch {result['batch']}, {result['dtype']}, ZeRO "
        f"{result['zero_stage']}, one worker, a checkpoint of {result['checkpoint_bytes'] / 1e6:.0f} MB every "
        f"{result['every']} steps, {result['device_name']}, threads: {result['threads']}"
    )
    notes = [
        f"measured: {result['includes']}",
        f"ratio: times as fast as {REFERENCE}, the same steps in plain PyTorch, in the same round; cost: of its step "
        f"time; medians of {result['rounds']} rounds",
        f"{WHOLE}: {whole['step_cost']:+.1%} in the steps before a checkpoint, {whole['checkpoint_seconds']:.1f} s for "
        f"a checkpoint; with one every {result['recipe_checkpoint_seconds']:.0f} s, as the recipe has it, "
        f"{result['recipe_cost']:+.1%} in all",
        f"start: {result['cluster_seconds']:.1f} s for a local cluster, then {result['first_step_seconds']:.1f} s from "
        "the job's submission to the end of its first step",
    ]
    return "\n".join([title, *aligned(cells, left=1), *notes])
