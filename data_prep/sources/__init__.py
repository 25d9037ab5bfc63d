"""The data sets that Trimline knows, one module each, and the one function that writes their shards."""

import hashlib
import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from data_prep.clean import CleanConfig
from data_prep.errors import UserError
from data_prep.exclusion import read_exclusions
from data_prep.executors import Executor
from data_prep.files import user_cache
from data_prep.job import Checksums, Layout
from data_prep.links import link_shards, mirror_shards
from data_prep.out_folder import alone, refuse_others, refuse_what_is_read, settle_link
from data_prep.records import Split
from data_prep.remote import RemoteFolder
from data_prep.targets import LocalTarget, Target, open_target
from data_prep.writer import finished_account, remove_side_records, write_split

# One module of this name each.
SourceName = Literal[
    "shapes", "nlvr", "flickr8k", "shards",
    "coco", "vg", "sbu", "cc3m", "cc12m", "flickr30k", "nlvr2", "vqa", "snli_ve", "nocaps",
    "albef", "table", "folder", "img2dataset",
]  # fmt: skip
SOURCES: tuple[str, ...] = get_args(SourceName)
# A change of what any source writes needs another number: older shards are then written anew.
FORMAT = 3
_CACHE = ".annotations"


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """Which phrases of Visual Genome's regions become captions of the picture (vg only).

    Attributes:
        min_side: Width and height that a region must have at least, in pixels.
        min_share: Share of the picture's area that it must cover at least.
        min_words: Words that its phrase must have at least.
        max_count: Regions of a picture that are taken at most, the largest ones; 0 for all.
    """

    min_side: int = 32
    min_share: float = 0.0
    min_words: int = 1
    max_count: int = 10

    def __post_init__(self) -> None:
        """Refuses numbers that say nothing."""
        for name in ("min_side", "min_share", "min_words", "max_count"):
            if getattr(self, name) < 0:
                raise UserError(f"data.regions.{name}={getattr(self, name)} must not be negative; 0 switches it off")
        if self.min_share > 1:
            raise UserError(f"data.regions.min_share={self.min_share} is a share of the picture: at most 1; try 0.05")


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """What the columns of a table are called (table only).

    Attributes:
        image: The column with the pictures' names.
        caption: The column with the captions; lists of them in Parquet are fine.
        id: A column with an identifier; by default the picture's name is it.
        split: A column that names the split.
        keep: Further columns that the samples' JSON shall have.
        names: The names of all columns, in order, where a CSV or TSV has no header.
    """

    image: str = "image"
    caption: str = "caption"
    id: str | None = None
    split: str | None = None
    keep: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which data set to make shards of, and how much of it.

    Attributes:
        name: The data set.
        root: A folder with its files under the names that they are published by, or a folder above it; of shards also
            a URL.
        annotations: Its annotation files, `FILE` or `SPLIT=FILE`, where `root` is not to find them.
        images: Folders, tars and zips with its pictures, where `root` is not to find them.
        sizes: Samples wanted by split, where they shall differ from the source's own numbers; 0 leaves a
            split out. Shapes are drawn in this number; of other data sets a split is cut down to it.
        shard_samples: Samples a shard.
        shard_bytes: Most bytes of a shard, where `shard_samples` of them would be larger.
        max_side: Longer side of pictures in pixels; larger ones are made smaller. Without it no byte is changed.
        checksums: sha256: of every picture and every shard, beside the CRC-32 of every sample; crc32: the latter alone,
            for much faster writing: enough to find what disks and networks damage.
        shuffle: Put the samples into an order drawn by `seed`, so that every shard is a fair part of the whole; those
            that come in a random order anyway stay in it.
        clean: What is left out.
        image_size: Width and height of drawn pictures in pixels (shapes only).
        seed: Decides what is drawn (shapes), which samples are held out or cut away, and their order.
        match: How the names of pictures are matched with files (albef, table): path: the folders that both have must
            agree; name: the file name decides.
        regions: Which regions of Visual Genome are taken.
        columns: What the columns of a table are called.
        splits: Names of the split folders to use (shards only), where `root` is a URL that cannot be listed; by default
            all that have an index.
        cache: Folder for tables made of the annotations, which every worker must reach; by default one beside the
            shards, or in ~/.cache/trimline for those in an object store, that goes when they are done.
    """

    name: SourceName = "shapes"
    root: str | None = None
    annotations: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    shard_samples: int = 1000
    shard_bytes: int | None = None
    max_side: int | None = None
    checksums: Checksums = "sha256"
    shuffle: bool = True
    clean: CleanConfig = field(default_factory=CleanConfig)
    image_size: int = 64
    seed: int = 0
    match: Literal["path", "name"] = "path"
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    splits: tuple[str, ...] = ()
    cache: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that no shards can be made of."""
        if self.name not in SOURCES:
            raise UserError(f"data.name={self.name!r} is no known data set; use one of {', '.join(SOURCES)}")
        Layout(shard_samples=self.shard_samples, shard_bytes=self.shard_bytes, max_side=self.max_side)
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
        remote: The URL behind which it is sharded already; only its index is copied then.
        shuffled: Whether its samples come in a random order, so that another one would gain nothing.
        reads: The folders and archives that its pictures lie in.
    """

    identity: Mapping[str, Any]
    load: Callable[[], Split]
    size: int | None = None
    folder: Path | None = None
    remote: RemoteFolder | None = None
    shuffled: bool = False
    reads: tuple[str, ...] = ()


class Source(Protocol):
    """What a module in this folder offers."""

    def plan(self, config: SourceConfig) -> dict[str, PlannedSplit]:
        """Says which splits there are, after looking whether the files are there."""
        ...


def source_module(name: str) -> Any:
    """The module of a data set."""
    return importlib.import_module(f"data_prep.sources.{name}")


def check_sizes(config: SourceConfig, splits: tuple[str, ...]) -> None:
    """Refuses sizes of splits that a data set does not have.

    Raises:
        UserError: naming the splits that there are.
    """
    unknown = sorted(set(config.sizes) - set(splits))
    if unknown:
        raise UserError(f"data.sizes.{unknown[0]} names no split of {config.name}; it has {', '.join(splits)}")


def prepare(
    config: SourceConfig,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    *,
    replace_others: bool = False,
) -> dict[str, Any]:
    """Writes every split of a data set into `out/<split>/`; finished ones are left as they are.

    Args:
        config: The data set and how much of it.
        out: Where the splits go: a folder, or a URL that fsspec knows.
        progress: Called with samples done and samples asked, over all splits.
        workers: Processes to write with; by default one a core.
        executor: Does the work in place of processes of this machine.
        replace_others: Whether shards of other data sets go where these shall lie, as in a run's own folder.

    Returns:
        The account: {"asked", "written", "skipped": {reason: count}, "captions": {reason: count}, "splits": {split:
        its own account}}.

    Raises:
        UserError: where raw files are missing or broken, a split is unknown, the disk is full, another process writes
            there, what is read or somebody's shards lie there, or the lists of exclusions leave nothing.
    """
    target = open_target(out)
    config, own_cache = _with_cache(config, target)
    source: Source = source_module(config.name)
    plans = source.plan(config)
    written = writing_identity(config)
    fingerprints = {name: _fingerprint(config, name, plan, written) for name, plan in plans.items()}
    for name, plan in plans.items():
        if plan.folder is None and plan.remote is None:
            place = target.child(name)
            settle_link(place, _name(config, name), fingerprints[name], remove=replace_others)
            refuse_what_is_read(place, plan.reads)
            if not replace_others:
                refuse_others(place, _name(config, name))
    with alone(target):
        account = _write(config, plans, fingerprints, target, progress, workers, executor)
        if own_cache is not None:
            shutil.rmtree(own_cache, ignore_errors=True)  # not before: a stopped job goes on with it
    if account["asked"] and not account["written"]:
        raise UserError(f"no sample of {config.name} could be written to {out}; skipped: {account['skipped']}")
    return account


def _write(
    config: SourceConfig,
    plans: Mapping[str, PlannedSplit],
    fingerprints: Mapping[str, str],
    target: Target,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
    executor: Executor | None,
) -> dict[str, Any]:
    """Writes or links what is not there yet; returns the account of all."""
    found = {name: _finished(target, name, plan, fingerprints[name]) for name, plan in plans.items()}
    accounts = {name: account for name, account in found.items() if account is not None}
    todo = {name: plans[name].load() for name, account in found.items() if account is None}
    meter = _Meter(progress, [a["asked"] for a in accounts.values()], [len(split) for split in todo.values()])
    for name, split in todo.items():
        accounts[name] = write_split(
            split,
            target.child(name),
            name=_name(config, name),
            fingerprint=fingerprints[name],
            layout=_layout(config, name, plans[name]),
            clean=config.clean,
            workers=workers,
            executor=executor,
            progress=meter.report,
        )
        meter.finished(len(split))
    return _sum({name: accounts[name] for name in plans})


def _finished(target: Target, name: str, plan: PlannedSplit, fingerprint: str) -> dict[str, Any] | None:
    """The account of a split that is linked, or written already; None for one that has yet to be written."""
    if plan.remote is not None:
        return mirror_shards(target, name, plan.remote)
    if plan.folder is not None:
        return link_shards(target, name, plan.folder)
    place = target.child(name)
    account = finished_account(place, fingerprint)
    if account is not None:
        remove_side_records(place)
    return account


def _name(config: SourceConfig, split: str) -> str:
    return f"{config.name}/{split}"


def _with_cache(config: SourceConfig, target: Target) -> tuple[SourceConfig, Path | None]:
    """A configuration with a folder for tables: the user's, or one of ours, which is returned to be removed."""
    if config.cache is not None:
        return replace(config, cache=str(Path(config.cache).expanduser())), None
    if isinstance(target, LocalTarget):
        own = target.folder / _CACHE
    else:
        # Tables are mapped into memory, which no object store can do; a job that goes on must find them again.
        own = user_cache() / f"tables-{hashlib.sha256(str(target).encode()).hexdigest()[:20]}"
    return replace(config, cache=str(own)), own


def writing_identity(config: SourceConfig) -> dict[str, Any]:
    """Everything that shards depend on besides what is in their source, as JSON values.

    Raises:
        UserError: where a list of exclusions is missing or holds nothing.
    """
    clean = asdict(config.clean) | {"exclude": list(read_exclusions(config.clean.exclude).digest)}
    # Left out where it is the default, so that what was written before there was a choice counts as finished.
    checksums = {} if config.checksums == "sha256" else {"checksums": config.checksums}
    return checksums | {
        "format": FORMAT,
        "shard_samples": config.shard_samples,
        "shard_bytes": config.shard_bytes,
        "max_side": config.max_side,
        "shuffle": config.seed if config.shuffle else None,
        "clean": clean,
    }


def _layout(config: SourceConfig, name: str, plan: PlannedSplit) -> Layout:
    order = f"{config.name}/{name}/{config.seed}" if config.shuffle and not plan.shuffled else None
    return Layout(
        shard_samples=config.shard_samples,
        shard_bytes=config.shard_bytes,
        max_side=config.max_side,
        order=order,
        checksums=config.checksums,
    )


def _fingerprint(config: SourceConfig, name: str, plan: PlannedSplit, written: Mapping[str, Any]) -> str:
    identity = {"source": config.name, "split": name, **written, **plan.identity}
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
    skipped, captions = Counter[str](), Counter[str]()
    for account in accounts.values():
        skipped.update(account["skipped"])
        captions.update(account.get("captions", {}))
    return {
        "asked": sum(account["asked"] for account in accounts.values()),
        "written": sum(account["written"] for account in accounts.values()),
        "skipped": dict(sorted(skipped.items())),
        "captions": dict(sorted(captions.items())),
        "splits": accounts,
    }
