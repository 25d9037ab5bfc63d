"""One download from the list to the shards; see the package for how it goes."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.clean import CleanConfig, Cleaner
from data_prep.download.account import GOT, in_groups, make_account, may_pass
from data_prep.download.asked import Asked, write_asked
from data_prep.download.config import DownloadConfig
from data_prep.download.environment import ensure_environment
from data_prep.download.lists import ListSpec, find_list
from data_prep.download.results import PLACES, Fetched, Outcomes, read_tables, write_places
from data_prep.download.tool import FetchSettings, run_tool
from data_prep.errors import UserError
from data_prep.files import atomic_dir, fsync_dir, read_json, sha256_file, write_json
from data_prep.index import INDEX, read_shard_list
from data_prep.job import Layout
from data_prep.parallel import cores
from data_prep.writer import write_split

ACCOUNT = "download.json"
_PIECE_SHARDS = 100
_SAFE_IN_URLS = "%/:=&?~#+!$,;'@()*[]"

Progress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, out of how much (0: not known), and a remark."""


def download(config: DownloadConfig, progress: Progress) -> dict[str, Any]:
    """Downloads a list; goes on where an earlier call was stopped.

    Args:
        config: What to download.
        progress: Called now and then.

    Returns:
        The account (see `data_prep.download.account.make_account`) with the list and the settings, as it also stands
        in `out/split/download.json`.

    Raises:
        UserError: the list or the folder cannot be used, the disk is full, img2dataset cannot be installed or fails
            again and again, or not one picture came.
    """
    spec = find_list(Path(config.list).expanduser(), config.format, config.url_column, config.caption_column)
    final = shard_folder(config)
    out, state = final.parent, final.parent / f".download-{config.split}"
    identity = _identity(config, spec)
    done = _finished(final, identity)
    if done is not None:
        if not config.keep_raw:
            shutil.rmtree(state, ignore_errors=True)  # where an earlier call was stopped right before it
        return done
    with _locked(state):
        _claim(state, identity)
        if not (state / "asked").exists():
            write_asked(spec, state / "asked", lambda lines: progress("reading the list", lines, 0, ""))
        asked = Asked(state / "asked")
        if not len(asked):
            raise UserError(f"{spec.path}: no line asks for an http or https URL with a caption; {asked.faults}")
        outcomes, raws = _fetch(config, state, asked, progress)
        got = outcomes.where({word: word == GOT for word in outcomes.words})
        if not len(got):
            for raw in raws:
                shutil.rmtree(raw.parent)
            why = ", ".join(f"{reason} {count:,}" for reason, count in outcomes.counts().items())
            raise UserError(f"not one of {len(asked):,} URLs was fetched ({why}); is the network there?")
        write_places(state, raws, got)
        account = _write_shards(config, spec, identity, state, raws, asked, outcomes, progress)
        os.rename(state / "shards", final)
        fsync_dir(out)
        if not config.keep_raw:
            shutil.rmtree(state)
    return account


def shard_folder(config: DownloadConfig) -> Path:
    """Where the shards of a download go."""
    return Path(config.out).expanduser() / config.split


def _identity(config: DownloadConfig, spec: ListSpec) -> dict[str, Any]:
    """Everything that what is downloaded depends on, the state of the web aside."""
    return {
        "lists": {path.name: sha256_file(path) for path in spec.files},
        "format": spec.format,
        "url": spec.url,
        "caption": spec.caption,
        "name": _name(config),
        "min_side": config.min_side,
        "max_side": config.max_side,
        "shard_samples": config.shard_samples,
    }


def _name(config: DownloadConfig) -> str:
    stem = Path(config.list).name.partition(".")[0]
    return config.name or re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:80] or "list"


def _finished(final: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The account of a download that is finished and as it was, or None where there is nothing yet."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return None
    account: dict[str, Any] = read_json(final / ACCOUNT) if (final / ACCOUNT).is_file() else {}
    if account.get("identity") != identity:
        raise UserError(f"{final} holds something else; give another --out or --split, or remove it")
    try:
        written = read_shard_list(final)["account"].get("written")
    except UserError as error:
        raise UserError(
            f"{final} was damaged since it was downloaded; mend it with `trimline verify {final} --repair`, or remove "
            "it to download it again"
        ) from error
    if written != account[GOT]:
        raise UserError(
            f"{final} has {written} of the {account[GOT]} samples that were downloaded, for it was mended since; use "
            "it as it is, or remove it to download all again"
        )
    return account


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Keeps a second download from the same folder; the system lets go of the lock whatever happens to us."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot make the folder {state}: {error.strerror}; give another one with --out") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"another download is writing to {state.parent}; wait for it, or give another --out") from error
    finally:
        os.close(handle)


def _claim(state: Path, identity: dict[str, Any]) -> None:
    """Makes sure that what lies there was begun for the same list; what concerns the shards alone may change."""
    path = state / "request.json"
    wanted = {key: identity[key] for key in ("lists", "format", "url", "caption")}
    if not path.exists():
        write_json(path, wanted)
    elif read_json(path) != wanted:
        raise UserError(f"{state} holds the unfinished download of another list; give another --out, or remove it")


def _fetch(config: DownloadConfig, state: Path, asked: Asked, progress: Progress) -> tuple[Outcomes, list[Path]]:
    """Runs the passes; returns what became of each picture, and the folders of what came."""
    python = ensure_environment(Path(config.tool_env).expanduser() if config.tool_env else None)
    fetch = _fetch_settings(config)
    outcomes, raws = Outcomes(len(asked)), list[Path]()
    rows = np.arange(len(asked), dtype=np.int64)
    for number in range(config.retries + 1):
        if not len(rows):
            break
        folder = state / f"pass-{number}"
        shard_urls = _write_urls(config, folder / "urls", asked, rows, fetch.processes)
        what = "download" if number == 0 else f"try {number + 1}"
        total = len(rows)

        def show(done: int, answered: int, what: str = what, total: int = total) -> None:
            progress(what, done, total, f"{answered / done:.1%} answered" if done else "")

        run_tool(
            python, folder / "urls" / "lists", folder / "raw", rows=total, shard_urls=shard_urls, fetch=fetch,
            progress=show,
        )  # fmt: skip
        raws.append(folder / "raw")
        read_tables(folder / "raw", outcomes)
        rows = outcomes.where({word: may_pass(word) for word in outcomes.words})
    return outcomes, raws


def _fetch_settings(config: DownloadConfig) -> FetchSettings:
    return FetchSettings(
        processes=config.processes or cores(),
        threads=config.threads,
        timeout=config.timeout,
        max_seconds=config.max_seconds,
        max_mib=config.max_mib,
        allow_private=config.allow_private,
        stall_seconds=config.stall_seconds,
    )


def _write_urls(config: DownloadConfig, folder: Path, asked: Asked, rows: NDArray[np.int64], processes: int) -> int:
    """Writes the lists of a pass where they are not there yet; returns how many URLs make a shard of img2dataset's.

    A stop costs the shards that are being fetched, so they are small where the list is; each ends with waiting for its
    slowest server, so they are large where it is long.
    """
    about = folder / "about.json"
    if about.exists():
        kept: int = read_json(about)["shard_urls"]
        return kept
    shard_urls = config.shard_urls or min(max(-(-len(rows) // (8 * processes)), 100), 10_000)
    piece = shard_urls * _PIECE_SHARDS  # img2dataset holds one file in memory, and cuts it into whole shards
    with atomic_dir(folder) as aside:
        (aside / "lists").mkdir()
        for number, start in enumerate(range(0, len(rows), piece)):
            own = rows[start : start + piece]
            urls = [_quoted(url) for some in asked.urls(own) for url in some]
            pq.write_table(pa.table({"url": urls, "row": own}), aside / "lists" / f"{number:05d}.parquet")
        write_json(aside / "about.json", {"shard_urls": shard_urls, "rows": len(rows)})
    return shard_urls


def _quoted(url: str) -> str:
    """What browsers do to spaces and letters beyond ASCII; urllib refuses them."""
    return urllib.parse.quote(url, safe=_SAFE_IN_URLS)


def _write_shards(
    config: DownloadConfig, spec: ListSpec, identity: dict[str, Any], state: Path, raws: list[Path], asked: Asked,
    outcomes: Outcomes, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Writes shards, index and account into `state/shards`, whole; returns the account."""
    clean = CleanConfig(min_side=config.min_side)
    split = Fetched(state, raws, source=_name(config), cleaner=Cleaner.of(clean))
    told = json.dumps([identity, sha256_file(state / PLACES)], sort_keys=True)
    own = write_split(
        split,
        state / "shards",
        name=f"{_name(config)}/{config.split}",
        fingerprint=hashlib.sha256(told.encode()).hexdigest(),
        layout=Layout(shard_samples=config.shard_samples, max_side=config.max_side),
        clean=clean,
        workers=config.processes,
        progress=lambda done, total: progress("shards", done, total, ""),
    )
    index = read_json(state / "shards" / INDEX)
    if "download" not in index["account"]:  # else stopped right after this, in an earlier call
        account = _account(asked, outcomes, own)
        carried = {"asked": account["asked"], "written": account[GOT], "skipped": account["reasons"]}
        index["account"] = {**own, **carried, "download": account}
        write_json(state / "shards" / INDEX, index)
    whole = {
        "list": spec.path.name,
        **index["account"]["download"],
        "identity": identity,
        "settings": _settings(config),
    }
    write_json(state / "shards" / ACCOUNT, whole)
    return whole


def _settings(config: DownloadConfig) -> dict[str, Any]:
    """What else it was asked with; paths of this machine stay out of what people share."""
    return {key: value for key, value in asdict(config).items() if key not in ("list", "out", "tool_env")}


def _account(asked: Asked, outcomes: Outcomes, own: dict[str, Any]) -> dict[str, Any]:
    """The account over the whole list: what was not asked, what did not come, and what was no use."""
    reasons = Counter({f"refused: {fault}": count for fault, count in asked.faults.items()})
    reasons["duplicate: same URL, captions joined"] += asked.repeats
    reasons.update({reason: count for reason, count in outcomes.counts().items() if reason != GOT})
    for reason, count in own["skipped"].items():
        reasons[in_groups(reason)] += count
    return make_account(asked.lines, own["written"], reasons)
