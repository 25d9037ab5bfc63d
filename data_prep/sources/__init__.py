"""The data sets that Trimline knows, one module each, and the one function that writes their shards."""

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from data_prep.errors import UserError
from data_prep.index import INDEX, load_index
from data_prep.records import Split
from data_prep.writer import finished_account, write_split

SourceName = Literal["shapes", "nlvr", "flickr8k", "shards"]
# A change of what any source writes needs another number: older shards are then written anew.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which data set to make shards of, and how much of it.

    Attributes:
        name: The data set.
        root: The folder that holds its raw files, or the folder above it; not needed for shapes.
        sizes: Samples wanted by split, where they shall differ from the source's own numbers; 0 leaves a
            split out. Shapes are drawn in this number; of other data sets a split is cut down to it.
        shard_samples: Samples a shard.
        image_size: Width and height of drawn pictures in pixels (shapes only).
        seed: Decides what is drawn (shapes), and which samples are held out or cut away.
    """

    name: SourceName = "shapes"
    root: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    shard_samples: int = 1000
    image_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that no shards can be made of."""
        if self.name not in _MODULES:
            raise UserError(f"data.name={self.name!r} is no known data set; use one of {', '.join(_MODULES)}")
        if self.shard_samples < 1:
            raise UserError(f"data.shard_samples={self.shard_samples} must be at least 1; try 1000")
        if not 16 <= self.image_size <= 4096:
            raise UserError(f"data.image_size={self.image_size} must be from 16 to 4096 pixels; try 64")
        for split, size in self.sizes.items():
            if size < 0:
                raise UserError(f"data.sizes.{split}={size} must not be negative; 0 leaves the split out")


@dataclass(frozen=True, kw_only=True)
class PlannedSplit:
    """A split that a source can write.

    Attributes:
        identity: Everything that the split's bytes depend on besides `shard_samples`, as JSON values.
        load: Makes the split; called only where it is not yet written, for it may be slow.
        size: Samples, where known without loading.
        folder: Where the split is sharded already; it is linked then, and `load` is not called.
    """

    identity: Mapping[str, Any]
    load: Callable[[], Split]
    size: int | None = None
    folder: Path | None = None


class Source(Protocol):
    """What a module in this folder offers."""

    SPLITS: tuple[str, ...]

    def plan(self, config: SourceConfig) -> dict[str, PlannedSplit]:
        """Says which splits there are, after looking whether the files are there."""
        ...


_MODULES = {name: f"data_prep.sources.{name}" for name in ("shapes", "nlvr", "flickr8k", "shards")}


def find_root(config: SourceConfig, files: tuple[str, ...], folder: str) -> Path:
    """Finds the folder that holds a data set's raw files: `root` itself or a folder in it.

    Raises:
        UserError: naming the files that are missing.
    """
    wanted = f"{config.name} needs a folder with {', '.join(files)}"
    if config.root is None:
        raise UserError(f"data.root is not given: {wanted}; give it with --data.root DIR")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={config.root} is not a folder: {wanted}; give it with --data.root DIR")
    candidates = [path for path in (root, root / folder) if path.is_dir()]
    best = max(candidates, key=lambda path: sum((path / name).is_file() for name in files))
    missing = [name for name in files if not (best / name).is_file()]
    if len(missing) == len(files):
        raise UserError(f"data.root={config.root} holds none of the files: {wanted}")
    if missing:
        raise UserError(f"{best} has no {', '.join(missing)}: {wanted}; put the missing file there")
    return best


def prepare(
    config: SourceConfig,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes every split of a data set into `out/<split>/`; finished ones are left as they are.

    Args:
        config: The data set and how much of it.
        out: The folder for the splits.
        progress: Called with samples done and samples asked, over all splits.
        workers: Processes to write with; by default one a core.

    Returns:
        The account: {"asked", "written", "skipped": {reason: count}, "splits": {split: its own account}}.

    Raises:
        UserError: where raw files are missing or broken, a split is unknown, or the disk is full.
    """
    source: Source = importlib.import_module(_MODULES[config.name])
    unknown = sorted(set(config.sizes) - set(source.SPLITS))
    if unknown:
        raise UserError(f"data.sizes.{unknown[0]} names no split of {config.name}; it has {', '.join(source.SPLITS)}")
    plans = source.plan(config)
    accounts: dict[str, Any] = {}
    todo: dict[str, tuple[Split, str]] = {}
    for name, plan in plans.items():
        if plan.folder is not None:
            accounts[name] = _link(out / name, plan.folder)
            continue
        if (out / name).is_symlink():
            (out / name).unlink()  # nothing of ours may be written into somebody's own shards
        fingerprint = _fingerprint(config, name, plan)
        done = finished_account(out / name, fingerprint)
        if done is None:
            todo[name] = (plan.load(), fingerprint)
        else:
            accounts[name] = done
    meter = _Meter(progress, [a["asked"] for a in accounts.values()], [len(s) for s, _ in todo.values()])
    for name, (split, fingerprint) in todo.items():
        accounts[name] = write_split(
            split,
            out / name,
            name=f"{config.name}/{name}",
            fingerprint=fingerprint,
            shard_samples=config.shard_samples,
            workers=workers,
            progress=meter.report,
        )
        meter.finished(len(split))
    return _sum({name: accounts[name] for name in plans})


def _link(link: Path, folder: Path) -> dict[str, Any]:
    """Makes `link` lead to a folder of shards; returns the account of its index.

    Raises:
        UserError: a shard of the index is missing or of another size, or `link` is a folder with something in it.
    """
    index, _ = load_index(folder)
    for shard in index["shardlist"]:
        path = folder / shard["url"]
        if not path.exists() or path.stat().st_size != shard["filesize"]:
            raise UserError(f"{path} is missing or not of the size in {folder / INDEX}; run `trimline index {folder}`")
    if link.parent.is_symlink():
        link.parent.unlink()  # nothing of ours may be written into somebody's shards
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise UserError(f"{link} holds other shards; remove it, or give another folder with --out DIR")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    account: dict[str, Any] = index["account"]
    return account


def _fingerprint(config: SourceConfig, name: str, plan: PlannedSplit) -> str:
    identity = {
        "format": FORMAT,
        "source": config.name,
        "split": name,
        "shard_samples": config.shard_samples,
        **plan.identity,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class _Meter:
    """Adds the splits' own progress up."""

    def __init__(self, progress: Callable[[int, int], None] | None, done: list[int], todo: list[int]) -> None:
        self._progress = progress
        self._before, self._total = sum(done), sum(done) + sum(todo)
        self.report(0, 0)

    def report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._before + done, self._total)

    def finished(self, samples: int) -> None:
        self._before += samples


def _sum(accounts: dict[str, Any]) -> dict[str, Any]:
    skipped = Counter[str]()
    for account in accounts.values():
        skipped.update(account["skipped"])
    return {
        "asked": sum(account["asked"] for account in accounts.values()),
        "written": sum(account["written"] for account in accounts.values()),
        "skipped": dict(sorted(skipped.items())),
        "splits": accounts,
    }
