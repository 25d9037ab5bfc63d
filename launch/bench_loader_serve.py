"""One contender of `trimline bench loader` in a process that stays: it prepares, then runs laps as it is told to.

It is started as `python -c "..." NAME SPEC`, speaks JSON lines on its standard output, and takes a line on its standard
input for each lap. So a lap pays neither for a process's start nor for the import of torch.
"""

import gc
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from launch.bench_loader_peers import PEERS, Batches, LoaderSpec
from pipeline.data.batch import LoadWork
from pipeline.data.loader import LoaderConfig, train_loader
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, eval_image
from pipeline.process import Process

Lap = Callable[[], dict[str, float]]
PARTS = ("read", "decode", "text")
"""Of our workers' time, as `LoadWork` has it."""
MOST_PICTURES = 512
"""Different ones, for the bare decoder has them in memory."""


def serve(name: str, spec: LoaderSpec) -> None:
    """Prepares a contender, says so, and answers each line with a lap: its rate, cost and first batch."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    lap = _lap_of(name, spec)
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        print(json.dumps(lap()), file=answers)


def _lap_of(name: str, spec: LoaderSpec) -> Lap:
    if name == "decoder":
        return DecoderPool(spec).lap
    if name == "trimline":
        work: list[LoadWork] = []
        ours = our_loader(spec, work)
        return lambda: timed(ours, spec) | _parts(work, spec)
    batches = PEERS[name](spec)
    return lambda: timed(batches, spec)


def _parts(work: list[LoadWork], spec: LoaderSpec) -> dict[str, float]:
    """What the workers did for a sample of a lap, in microseconds; in the rest they pass batches on, or wait."""
    samples = spec.batch * len(work)
    parts = {f"{name}_us": 1e6 * sum(getattr(each, name) for each in work) / samples for name in PARTS}
    work.clear()
    return parts


def our_loader(spec: LoaderSpec, work: list[LoadWork]) -> Batches:
    """Our own loader, as training uses it but for augmentation.

    Args:
        spec: What is loaded.
        work: Takes what workers say of their work for each batch.
    """
    config = LoaderConfig(
        height=spec.size,
        width=spec.size,
        workers=spec.workers,
        max_tokens=spec.max_tokens,
        streams=next(streams for streams in range(min(16, spec.batch), 0, -1) if spec.batch % streams == 0),
        window=256,
    )
    tokenizer = Tokenizer.load(spec.tokenizer)

    def batches() -> Iterator[Any]:
        loader = train_loader(
            [(spec.shards, 1.0)],
            text="captions",
            unit="image",
            config=config,
            tokenizer=tokenizer,
            seed=spec.seed,
            global_batch=spec.batch,
            process=Process(),
            steps=spec.samples // spec.batch,
        )
        for batch in loader:
            work.append(batch.work)
            yield batch.pixels, batch.token_ids, batch.token_mask

    return batches


def timed(batches: Batches, spec: LoaderSpec) -> dict[str, float]:
    """Loads a lap's samples once, and gives samples/s of its middle.

    The first and the last batches are left out, twice as many as there are workers: then all of these are busy at both
    ends, and neither their start nor their running dry counts.
    """
    begin, spent = time.perf_counter(), _processor_seconds()
    arrivals: list[tuple[float, int]] = []
    loaded = 0
    stream = batches()
    for batch in stream:
        assert batch[0].shape[1:] == (3, spec.size, spec.size), batch[0].shape
        loaded += len(batch[0])
        arrivals.append((time.perf_counter(), len(batch[0])))
        if loaded + spec.batch > spec.samples:
            break
    first_batch = arrivals[0][0] - begin
    del stream, batch  # ends and reaps the workers: only then is their time known
    gc.collect()
    each = 1e6 * (_processor_seconds() - spent) / loaded
    edge = min(2 * spec.workers, (len(arrivals) - 1) // 3)
    first, last = edge, len(arrivals) - 1 - edge
    seconds = arrivals[last][0] - arrivals[first][0]
    counted = sum(count for _, count in arrivals[first + 1 : last + 1])
    return {"rate": counted / seconds, "first": first_batch, "cpu_us": each}


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in of)


class DecoderPool:
    """Processes that do nothing but decode and resize pictures that lie in memory, over and over."""

    def __init__(self, spec: LoaderSpec) -> None:
        folder = ShardFolder(spec.shards)
        pictures = [bytes(folder.read(row).image) for row in range(min(MOST_PICTURES, len(folder)))]
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._share = spec.samples // spec.workers
        for _ in range(spec.workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            context.Process(target=_decode, args=(theirs, self._pipes, pictures, spec.size), daemon=True).start()

    def lap(self) -> dict[str, float]:
        """Has all of them decode their share; the rate is that of the time in which all are busy.

        One that is through earlier than the others does not count as idle, as the ends of a loader's lap do not.
        """
        for pipe in self._pipes:
            pipe.send(self._share)
        took = [pipe.recv() for pipe in self._pipes]
        rate = sum(self._share / seconds for seconds, _ in took)
        spent = sum(processor for _, processor in took)
        return {"rate": rate, "first": 0.0, "cpu_us": 1e6 * spent / (self._share * len(took))}


def _decode(pipe: Connection, inherited: list[Connection], pictures: list[bytes], size: int) -> None:
    import cv2

    for other in inherited:  # or this process would hold its own pipe open when the one that asks is killed
        other.close()
    cv2.setNumThreads(0)
    config = TransformConfig(height=size, width=size)
    while True:
        try:
            count = pipe.recv()
        except EOFError:
            return
        begin, spent = time.perf_counter(), time.process_time()
        for number in range(count):
            eval_image(pictures[number % len(pictures)], config)
        pipe.send((time.perf_counter() - begin, time.process_time() - spent))


def main(words: list[str]) -> None:
    """The entry of the process: NAME, and the spec as JSON."""
    spec = LoaderSpec(**json.loads(words[1]))
    Path(spec.scratch).mkdir(parents=True, exist_ok=True)
    serve(words[0], spec)
