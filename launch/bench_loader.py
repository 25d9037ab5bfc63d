"""`trimline bench loader`: our loader against the bare decoder in as many processes, and against other loaders."""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import launch
from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.stores import NoPicture, StoreReader, find_stores, is_picture_name
from data_prep.writer import write_split
from launch import machine
from launch.answers import Answer
from launch.bench_loader_peers import REQUIREMENTS, LoaderSpec
from launch.bench_loader_serve import MOST_PICTURES, PARTS
from launch.bench_progress import interleaved
from launch.bench_shard import is_picture, make_pictures
from launch.bench_shard_work import PictureSplit
from launch.peer_environments import NoEnvironment, default_folder, peer_python
from launch.report.table import aligned
from launch.report.words import ABSENT
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.measure.timing import paired_ratios, spread

log = logging.getLogger(__name__)

REFERENCE = "decoder"
INCLUDES = (
    "from shards on this disk, read before, to batches in the trainer: pixels (B, 3, H, W) uint8 and tokens; shuffled; "
    "between batches when all workers are busy"
)
_MOST_TOKENS = 25
_BYTES = 300e6  # of pictures in a lap, where nobody says how many samples
_SAMPLES = (1024, 16384)
_SHARDS = 16
_START = "import sys; sys.path.append({root!r}); from launch.bench_loader_serve import main; main(sys.argv[1:])"
_SECONDS_TO_STOP = 10.0


class Contender:
    """A process that runs laps of one loader; see `launch.bench_loader_serve`."""

    def __init__(self, name: str, python: Path, spec: LoaderSpec, errors: Path) -> None:
        root = str(Path(launch.__file__).parents[1])
        words = [str(python), "-c", _START.format(root=root), name, json.dumps(asdict(spec))]
        mine = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        self.name = name
        self._errors = errors
        with open(errors, "wb") as file:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=mine | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def answer(self) -> dict[str, float]:
        """Waits for what it says next.

        Raises:
            Broken: it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._errors.read_text(errors="replace").strip().splitlines()
            raise Broken(f"{self.name} ended: {said[-1] if said else f'code {self._process.wait()}'}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def lap(self) -> dict[str, float]:
        """Runs one."""
        assert self._process.stdin is not None
        self._process.stdin.write("lap\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends the process: in order, so that it ends its own workers; by force where that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Broken(Exception):
    """A contender that cannot run; the message is its last word."""


def loader_bench_command(options: argparse.Namespace) -> Answer:
    """`trimline bench loader`.

    Raises:
        UserError: Options that nothing can be measured with, or a disk that is full.
    """
    workers = _checked(options)
    place = None if options.out is None else Path(options.out).expanduser()
    with tempfile.TemporaryDirectory(prefix="trimline-bench-", dir=place) as scratch:
        paths = _pictures(options, Path(scratch) / "pictures")
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
        samples = options.samples or min(max(round(_BYTES / size), _SAMPLES[0]), _SAMPLES[1])
        spec = _prepare(paths, samples, workers, options, Path(scratch))
        result = run_loader_bench(spec, options)
    result |= {"pictures": len(paths), "picture_bytes": size}
    return 0, result, loader_bench_text(result)


def _checked(options: argparse.Namespace) -> int:
    """The number of workers."""
    least = {"rounds": 1, "warmup": 0, "image_size": 16, "size": 16, "batch": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            raise UserError(f"bench.{name}={getattr(options, name)} must be at least {value}")
    workers = machine.available_cpus() if options.workers is None else int(options.workers)
    if workers < 1:
        raise UserError(f"bench.workers={workers} must be at least 1")
    wanted = 12 * workers * options.batch
    if options.samples is not None and options.samples < wanted:
        raise UserError(
            f"bench.samples={options.samples} must be at least {wanted}, 12 batches of {options.batch} for each of "
            f"{workers} workers, for the first and last ones do not count"
        )
    unknown = set(options.peers) - {"all", "none", *REQUIREMENTS}
    if unknown:
        raise UserError(f"bench.peers={','.join(sorted(unknown))} is unknown; there are {', '.join(REQUIREMENTS)}")
    if options.out is not None and not Path(options.out).expanduser().is_dir():
        raise UserError(f"bench.out={options.out} is not a folder; give one that is there, on the disk to measure")
    return workers


def _pictures(options: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """The paths of the pictures, taken out of a folder, tar or zip where one is given, else made.

    Raises:
        UserError: where there are none.
    """
    if options.images is None:
        return tuple(make_pictures(folder, options.image_size, options.seed))
    folder.mkdir()
    return tuple(_taken(options.images, folder))


def _taken(given: str, folder: Path) -> Iterator[str]:
    stores = find_stores([given], "bench.images")
    reader, found = StoreReader(stores), 0
    for number, store in enumerate(stores):
        for place in store.places(number):
            if found >= MOST_PICTURES or not is_picture_name(place.name):
                continue
            try:
                data = reader.read(place)
            except NoPicture:
                continue  # whether a data set is whole is for `trimline verify`
            if is_picture(data):
                path = folder / f"{found}{Path(place.name).suffix}"
                path.write_bytes(data)
                found += 1
                yield str(path)
    if not found:
        raise UserError(f"bench.images={given} holds no JPEG, PNG or WebP picture; give a folder or tar of pictures")


def _prepare(
    paths: tuple[str, ...], samples: int, workers: int, options: argparse.Namespace, scratch: Path
) -> LoaderSpec:
    """Writes shards with our writer and a tokenizer."""
    samples = max(samples, 12 * workers * options.batch) // options.batch * options.batch
    split = PictureSplit(paths=paths, size=samples, shard_samples=-(-samples // max(_SHARDS, workers)))
    layout = Layout(shard_samples=split.shard_samples)
    write_split(split, scratch / "data/train", name="train", fingerprint="bench", layout=layout, workers=1)
    texts = (record.captions[0] for record in split.records(0, min(samples, 1000)))
    Tokenizer.train(texts, TokenizerConfig()).save(scratch / "tokenizer")
    return LoaderSpec(
        root=str(scratch / "data"),
        scratch=str(scratch / "peers"),
        tokenizer=str(scratch / "tokenizer"),
        size=options.size,
        max_tokens=_MOST_TOKENS,
        batch=options.batch,
        workers=workers,
        samples=samples,
        seed=options.seed,
    )


def run_loader_bench(spec: LoaderSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Runs every contender in turn over the same samples, in as many loader processes.

    Returns:
        The object that `trimline bench loader --json` prints.
    """
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(_started(name, Path(sys.executable), spec)) for name in (REFERENCE, "trimline")
        ]
        for contender in contenders:
            contender.answer()
        for name in _peers(options.peers):
            try:
                contenders.append(_peer(name, spec, options.peer_env, stack))
            except (NoEnvironment, Broken) as error:
                log.warning("left out: %s", error)
                left_out[name] = str(error)
        runs = {contender.name: contender.lap for contender in contenders}
        laps = interleaved("loader", runs, options)
    return {
        "reference": REFERENCE,
        "device": "cpu",
        "device_name": machine.hardware()["processor"],
        "rows": [_row(name, laps) for name in laps],
        "left_out": left_out,
        **{name: getattr(spec, name) for name in ("workers", "samples", "batch", "size", "seed")},
        "rounds": options.rounds,
        "warmup": options.warmup,
        "includes": INCLUDES,
        "commit": machine.git_commit(),
    }


def _peers(given: Sequence[str]) -> list[str]:
    if "all" in given:
        return list(REQUIREMENTS)
    return [name for name in REQUIREMENTS if name in given]


@contextmanager
def _started(name: str, python: Path, spec: LoaderSpec) -> Iterator[Contender]:
    contender = Contender(name, python, spec, Path(spec.root).with_name(f"{name}.log"))
    try:
        yield contender
    finally:
        contender.close()


def _peer(name: str, spec: LoaderSpec, folder: str | None, stack: ExitStack) -> Contender:
    """A peer that is ready.

    Raises:
        NoEnvironment: there is none and none can be made.
        Broken: it cannot prepare.
    """
    place = default_folder() if folder is None else Path(folder).expanduser()
    wanted = REQUIREMENTS[name]
    python = peer_python(place, name, wanted, borrow=True) if wanted else Path(sys.executable)
    contender = stack.enter_context(_started(name, python, spec))
    contender.answer()
    contender.lap()  # one that breaks does so here, not in the middle
    return contender


def _row(name: str, laps: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    rates = {who: [lap["rate"] for lap in laps[who]] for who in (name, REFERENCE)}
    parts = PARTS if f"{PARTS[0]}_us" in laps[name][0] else ()
    # A rate is better the higher it is, seconds the lower: so the roles are changed.
    ratios = spread(paired_ratios(rates[name], rates[REFERENCE]))
    return {
        "name": name,
        "value": spread(rates[name]).median,
        "unit": "samples/s",
        "ratio": ratios.median,
        "ratio_min": ratios.least,
        "ratio_q1": ratios.low,
        "ratio_q3": ratios.high,
        "first_batch_seconds": None if name == REFERENCE else spread([lap["first"] for lap in laps[name]]).median,
        "cpu_us": spread([lap["cpu_us"] for lap in laps[name]]).least,
        "parts_us": {part: spread([lap[f"{part}_us"] for lap in laps[name]]).median for part in parts},
        "flops_ratio": None,
        "peak_bytes": None,
    }


def _in_words(row: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{part} {value:.0f}" for part, value in row["parts_us"].items())
    return f"{row['name']}'s workers, us/sample: {parts}; the rest of their time they pass batches on, or wait"


def loader_bench_text(result: Mapping[str, Any]) -> str:
    """The result for people: what was measured, a table, how to read it."""
    cells = [["loader", "samples/s", "ratio", "quartiles", "CPU us/sample", "first batch, s"]]
    for row in result["rows"]:
        first = row["first_batch_seconds"]
        quartiles = f"{row['ratio_q1']:.3f} to {row['ratio_q3']:.3f}"
        start = ABSENT if first is None else f"{first:.2f}"
        cells.append(
            [row["name"], f"{row['value']:.0f}", f"{row['ratio']:.3f}", quartiles, f"{row['cpu_us']:.0f}", start]
        )
    title = (
        f"{result['pictures']} pictures of {result['picture_bytes'] / 1000:.1f} kB on average to {result['size']} px, "
        f"{result['samples']} samples, batch {result['batch']}, {result['workers']} workers, {result['device_name']}"
    )
    notes = [
        f"measured: {result['includes']}",
        f"ratio: times as fast as {result['reference']}, the same decoding and resizing in as many processes and "
        f"nothing else, in the same round; median of {result['rounds']} rounds",
        "CPU: of all its processes, with their start, in the round that took least",
        *(_in_words(row) for row in result["rows"] if row["parts_us"]),
        *(f"left out: {why}" for why in result["left_out"].values()),
    ]
    return "\n".join([title, *aligned(cells, left=1), *notes])
