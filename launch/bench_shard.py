"""`trimline bench shard`: our writer against webdataset's TarWriter, the disk, the checksums and the bare decoder."""

import argparse
import concurrent.futures as futures
import contextlib
import io
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.clean import CleanConfig
from data_prep.errors import UserError
from data_prep.executors import Executor, Work
from data_prep.images import BadImage, measure_image
from data_prep.job import Checksums as ChecksumsKind
from data_prep.job import Layout
from data_prep.writer import write_split
from launch import machine
from launch.answers import Answer
from launch.bench_progress import interleaved
from launch.bench_shard_work import Checksums, Decoder, Disk, PictureSplit, TarWriterLoop, WarmPool
from launch.report.table import aligned
from pipeline.measure.timing import paired_ratios, spread

REFERENCE = "webdataset"
_MADE = 64  # pictures made; they are written again and again
_MOST_PICTURES = 512  # of a folder, for the bare decoder has them in memory
INCLUDES = (
    "reading each picture's file, cleaning, checksums, tar, fsync, index; processes run before the clock does; "
    "trimline has the checks off (no decoding, --checksums crc32), trimline_sha256 no decoding alone, trimline_decoded "
    "neither; webdataset's loop makes no checksums and no fsync, webdataset_checksums makes the two SHA-256"
)
LIMITS: dict[str, tuple[str, str]] = {"trimline": ("crc32", "disk")}
"""What bounds a contender's rate; the others make SHA-256s."""


def shard_bench_command(options: argparse.Namespace) -> Answer:
    """`trimline bench shard`.

    Raises:
        UserError: Options that nothing can be measured with, or a disk that is full.
    """
    for name, least in (("samples", 1), ("shard_samples", 1), ("rounds", 1), ("warmup", 0), ("image_size", 16)):
        if getattr(options, name) < least:
            raise UserError(f"bench.{name}={getattr(options, name)} must be at least {least}")
    workers = machine.available_cpus() if options.workers is None else options.workers
    if workers < 1:
        raise UserError(f"bench.workers={workers} must be at least 1")
    place = None if options.out is None else Path(options.out).expanduser()
    if place is not None and not place.is_dir():
        raise UserError(f"bench.out={options.out} is not a folder; give one that is there, on the disk to measure")
    with tempfile.TemporaryDirectory(prefix="trimline-bench-", dir=place) as scratch:
        paths = _pictures(options, Path(scratch))
        split = PictureSplit(paths=paths, size=options.samples, shard_samples=options.shard_samples)
        result = run_shard_bench(split, Path(scratch) / "shards", workers, options)
    return 0, result, shard_bench_text(result)


def _pictures(options: argparse.Namespace, scratch: Path) -> tuple[str, ...]:
    """The paths of the pictures that are written.

    Raises:
        UserError: where the folder holds none.
    """
    if options.images is None:
        return tuple(make_pictures(scratch / "pictures", options.image_size, options.seed))
    folder = Path(options.images).expanduser()
    found: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if len(found) < _MOST_PICTURES and is_picture(path.read_bytes()):
            found.append(str(path))
    if not found:
        raise UserError(f"bench.images={options.images} holds no JPEG, PNG or WebP picture; give a folder of pictures")
    return tuple(found)


def is_picture(data: bytes) -> bool:
    """Whether a file is a picture that shards may hold."""
    try:
        measure_image(data)
    except BadImage:
        return False
    return True


def make_pictures(folder: Path, side: int, seed: int) -> Iterator[str]:
    """Smooth noise with fine grain, 4 to 3: JPEGs that take about as many bits a pixel as photographs do."""
    folder.mkdir()
    draw = np.random.Generator(np.random.Philox(key=seed))
    width, height = side, max(1, side * 3 // 4)
    for number in range(_MADE):
        coarse = draw.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = draw.integers(-7, 8, smooth.shape, dtype=np.int16)
        file = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        path = folder / f"{number}.jpg"
        path.write_bytes(file.getvalue())
        yield str(path)


def run_shard_bench(split: PictureSplit, folder: Path, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times every contender in turn over the same samples, in as many processes.

    Returns:
        The object that `trimline bench shard --json` prints.
    """
    with _pool(workers) as executor:
        runs = {name: partial(_timed, run, folder) for name, run in _contenders(split, folder, executor).items()}
        laps = interleaved("shard", runs, options)
    sizes = [os.path.getsize(path) for path in split.paths]
    picture_bytes = float(np.mean([sizes[number % len(sizes)] for number in range(split.size)]))
    return {
        "reference": REFERENCE,
        "device": "cpu",
        "device_name": machine.hardware()["processor"],
        "rows": [_row(name, laps, split.size, picture_bytes) for name in laps],
        "workers": workers,
        "samples": split.size,
        "shard_samples": split.shard_samples,
        "pictures": len(split.paths),
        "picture_bytes": picture_bytes,
        "rounds": options.rounds,
        "warmup": options.warmup,
        "seed": options.seed,
        "includes": INCLUDES,
        "commit": machine.git_commit(),
    }


def _contenders(split: PictureSplit, folder: Path, executor: Executor) -> dict[str, Callable[[], None]]:
    def each(work: Work) -> Callable[[], None]:
        return lambda: _drain(executor.map(work, split.shards()))

    def ours(decode: bool, checksums: ChecksumsKind) -> Callable[[], None]:
        layout, clean = Layout(shard_samples=split.shard_samples, checksums=checksums), CleanConfig(decode=decode)
        return lambda: _drain(
            write_split(split, folder, name="bench", fingerprint="bench", layout=layout, clean=clean, executor=executor)
        )

    return {
        REFERENCE: each(TarWriterLoop(split=split, folder=str(folder))),
        "webdataset_checksums": each(TarWriterLoop(split=split, folder=str(folder), checksums=True)),
        "trimline": ours(decode=False, checksums="crc32"),
        "trimline_sha256": ours(decode=False, checksums="sha256"),
        "trimline_decoded": ours(decode=True, checksums="sha256"),
        "crc32": each(Checksums(split=split, kind="crc32")),
        "checksums": each(Checksums(split=split, kind="sha256")),
        "disk": each(Disk(split=split, folder=str(folder))),
        "decoder": each(Decoder(split=split)),
    }


def _drain(results: Any) -> None:
    for _ in results:
        pass


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield WarmPool(pool)


def _timed(run: Callable[[], None], folder: Path) -> float:
    """Seconds of one run in an empty folder, with nothing of an earlier run still on its way to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder)
    return seconds


def _row(name: str, laps: Mapping[str, Sequence[float]], samples: int, picture_bytes: float) -> dict[str, Any]:
    seconds, ratios = spread(laps[name]), spread(paired_ratios(laps[REFERENCE], laps[name]))
    return {
        "name": name,
        "value": samples / seconds.median,
        "unit": "samples/s",
        "ratio": ratios.median,
        "ratio_min": ratios.least,
        "ratio_q1": ratios.low,
        "ratio_q3": ratios.high,
        "picture_bytes_per_second": samples * picture_bytes / seconds.median,
        "of_limit": _share(laps, name, LIMITS.get(name, ("checksums", "disk"))),
        "of_decoder": _share(laps, name, ("decoder",)),
        "flops_ratio": None,
        "peak_bytes": None,
    }


def _share(laps: Mapping[str, Sequence[float]], name: str, limits: Sequence[str]) -> float:
    """Its rate as a share of the lowest of these limits: by round, the median."""
    slowest = [max(times) for times in zip(*(laps[limit] for limit in limits), strict=True)]
    return spread(paired_ratios(slowest, laps[name])).median


def shard_bench_text(result: Mapping[str, Any]) -> str:
    """The result for people: what was measured, a table, how to read it."""
    cells = [["contender", "samples/s", "MB/s", "ratio", "quartiles", "of limit", "of decoder"]]
    for row in result["rows"]:
        cells.append(
            [
                row["name"],
                f"{row['value']:.0f}",
                f"{row['picture_bytes_per_second'] / 1e6:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}",
                f"{row['of_limit']:.0%}",
                f"{row['of_decoder']:.0%}",
            ]
        )
    title = (
        f"{result['samples']} pictures of {result['picture_bytes'] / 1000:.1f} kB on average, "
        f"{result['workers']} processes, {result['device_name']}"
    )
    notes = [
        f"measured: {result['includes']}",
        f"ratio: times as fast as {result['reference']} in the same round, median of {result['rounds']} rounds",
        "of limit: of the slower of checksums (reading, and making those it makes) and disk (writing the bytes alone)",
        "of decoder: of decoding in full to RGB and nothing else",
    ]
    return "\n".join([title, *aligned(cells, left=1), *notes])
