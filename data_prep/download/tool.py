"""Runs img2dataset over one folder of URL lists until every shard is there, whatever happens in between."""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.download import guard
from data_prep.download.environment import quiet
from data_prep.errors import UserError
from data_prep.files import write_json

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_TAR_END = 1024
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How img2dataset asks.

    Attributes:
        processes: Processes, each with `threads`.
        threads: Requests at a time of each process.
        timeout: Seconds that a server may stay silent.
        max_seconds: Seconds that a picture may take in all.
        max_mib: Size that a picture may have.
        allow_private: Whether addresses that are not public may be asked.
        stall_seconds: Seconds without a sign of life after which img2dataset is started anew.
    """

    processes: int
    threads: int
    timeout: int
    max_seconds: int
    max_mib: int
    allow_private: bool
    stall_seconds: int


def finished_shards(raw: Path) -> dict[int, dict[str, Any]]:
    """The statistics of the shards that img2dataset has finished, by number.

    It takes a shard for finished where the statistics' file is there; where it was killed or the machine stopped, that
    file may be cut off, or the others not yet on the disk. Such a file is removed here, and the shard is fetched anew.
    """
    found = {}
    for path in sorted(raw.glob("*_stats.json")):
        stem = path.name.removesuffix("_stats.json")
        try:
            stats = json.loads(path.read_text(encoding="utf-8"))
            whole = stats["count"] >= 0 and _is_whole(raw / f"{stem}.tar", raw / f"{stem}.parquet")
        except (ValueError, KeyError, TypeError):
            whole = False
        if whole:
            found[int(stem)] = stats
        else:
            log.warning("%s is not whole; its shard is fetched again", path)
            path.unlink()
    return found


def _is_whole(tar: Path, table: Path) -> bool:
    try:
        with open(tar, "rb") as file:
            file.seek(-_TAR_END, os.SEEK_END)
            ended = not any(file.read())
        with pq.ParquetFile(table):
            return ended
    except (OSError, pa.ArrowInvalid):
        return False


def run_tool(
    python: Path, urls: Path, raw: Path, *, rows: int, shard_urls: int, fetch: FetchSettings,
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Fetches a folder of URL lists; shards that are finished stay as they are.

    Args:
        python: Of img2dataset's environment.
        urls: Folder of parquet files with the columns url and row; all but the last hold whole shards.
        raw: Folder for img2dataset's tars, tables and statistics.
        rows: URLs in all.
        shard_urls: URLs a shard.
        fetch: How to ask.
        progress: Called with the URLs that were asked and how many of them were answered with some bytes.

    Raises:
        UserError: the disk is full, or img2dataset fails again and again.
    """
    raw.mkdir(parents=True, exist_ok=True)
    wanted = math.ceil(rows / shard_urls)
    log_file = raw.parent / "img2dataset.log"
    settings = raw.parent / "settings.json"
    write_json(settings, _settings(urls, raw, shard_urls, fetch))
    done, failures = len(finished_shards(raw)), 0
    while done < wanted and failures < _ATTEMPTS:
        said_before = log_file.stat().st_size if log_file.exists() else 0
        _run_once(python, settings, raw, log_file, fetch, progress)
        _refuse_full_disk(log_file, said_before)
        before, done = done, len(finished_shards(raw))
        if done < wanted:
            # Of a list that takes days many attempts may end early; only those in a row that bring nothing count.
            failures = 0 if done > before else failures + 1
            log.warning("img2dataset left %d shards unfinished (%s says why)", wanted - done, log_file)
    if done < wanted:
        raise UserError(
            f"img2dataset left {wanted - done} of {wanted} shards unfinished, and {_ATTEMPTS} attempts in a row "
            f"brought nothing; {log_file} says why; run the same command again once it is mended: what is finished is "
            "kept"
        )


def _settings(urls: Path, raw: Path, shard_urls: int, fetch: FetchSettings) -> dict[str, Any]:
    return {
        "limits": {
            "seconds": fetch.max_seconds,
            "max_bytes": fetch.max_mib * 2**20,
            "public_only": not fetch.allow_private,
        },
        "img2dataset": {
            "url_list": str(urls),
            "input_format": "parquet",
            "url_col": "url",
            "save_additional_columns": ["row"],
            "output_format": "webdataset",
            "output_folder": str(raw),
            "number_sample_per_shard": shard_urls,
            "processes_count": fetch.processes,
            "thread_count": fetch.threads,
            "timeout": fetch.timeout,
            # The bytes as they come. Its `skip_reencode` would re-encode every PNG, WebP and unusual JPEG, and its
            # check takes a picture that was cut off for whole; ours comes when the shards are written.
            "disable_all_reencoding": True,
            "compute_hash": "sha256",
            "extract_exif": False,
            "incremental_mode": "incremental",
            "retries": 0,
        },
    }


def _run_once(
    python: Path, settings: Path, raw: Path, log_file: Path, fetch: FetchSettings, progress: Callable[[int, int], None]
) -> None:
    command = [str(python), "-I", str(Path(guard.__file__)), str(settings)]
    # It has a session of its own, so that Ctrl-C is ours to handle; it ends when its stdin does, so that it never
    # outlives us, not even where we are killed.
    with open(log_file, "ab") as log_handle:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log_handle,
            stderr=subprocess.STDOUT,
            env=quiet(),
            start_new_session=True,
        )
        try:
            _wait(process, raw, fetch, progress)
        finally:
            _end(process)


def _wait(
    process: subprocess.Popen[bytes], raw: Path, fetch: FetchSettings, progress: Callable[[int, int], None]
) -> None:
    """Waits for its end, or for it to hang: a worker that the system killed leaves it waiting for ever."""
    # A table is written by hundreds of rows: so long may it be silent where every server is.
    patience = fetch.stall_seconds + (fetch.timeout + fetch.max_seconds) * math.ceil(100 / fetch.threads)
    seen, since, next_look = (-1, -1), time.monotonic(), 0.0
    counted: dict[str, tuple[int, int]] = {}
    while True:
        try:
            process.wait(_POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            pass
        progress(*_count(raw, counted))
        now = time.monotonic()
        if now < next_look:
            continue
        next_look = now + _LOOK_SECONDS
        signs = _signs_of_life(raw)
        if signs != seen:
            seen, since = signs, now
        elif now - since > patience:
            log.warning("img2dataset gave no sign of life for %.0f s; it is stopped", patience)
            return


def _count(raw: Path, counted: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """URLs asked and pictures got by the shards that are finished; each file is read once."""
    for entry in os.scandir(raw):
        if entry.name.endswith("_stats.json") and entry.name not in counted:
            try:
                stats: Mapping[str, int] = json.loads(Path(entry.path).read_text(encoding="utf-8"))
            except ValueError:
                continue  # being written; the next look will find it whole
            counted[entry.name] = stats["count"], stats["successes"]
    return sum(count for count, _ in counted.values()), sum(got for _, got in counted.values())


def _signs_of_life(raw: Path) -> tuple[int, int]:
    sizes = []
    for path in raw.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # it cleans up after itself
            continue
    return len(sizes), sum(sizes)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends it and its children; its state goes on from the shards that are finished."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _refuse_full_disk(log_file: Path, said_before: int) -> None:
    with open(log_file, "rb") as file:
        file.seek(max(said_before, log_file.stat().st_size - 200_000))
        said = file.read().decode(errors="replace")
    if any(words in said for words in _FULL):
        raise UserError(
            f"the disk of {log_file.parent} is full; free some space, or give another --out, then run the same "
            "command again: what is finished is kept"
        )
