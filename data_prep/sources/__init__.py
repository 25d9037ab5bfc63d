"""The data sets that Trimline knows, one module each, and the one function that writes their shards."""

import hashlib
import importlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from data_prep.clean import CleanConfig
from data_prep.errors import UserError
from data_prep.exclusion import read_exclusions
from data_prep.executors import Executor
from data_prep.index import INDEX, load_index
from data_prep.job import Layout
from data_prep.mirror import mirror_index, remote_url
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
FORMAT = 2
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
            shards that goes when they are done.
    """

    name: SourceName = "shapes"
    root: str | None = None
    annotations: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    shard_samples: int = 1000
    shard_bytes: int | None = None
    max_side: int | None = None
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
    """

    identity: Mapping[str, Any]
    load: Callable[[], Split]
    size: int | None = None
    folder: Path | None = None
    remote: RemoteFolder | None = None
    shuffled: bool = False


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
) -> dict[str, Any]:
    """Writes every split of a data set into `out/<split>/`; finished ones are left as they are.

    Args:
        config: The data set and how much of it.
        out: Where the splits go: a folder, or a URL that fsspec knows.
        progress: Called with samples done and samples asked, over all splits.
        workers: Processes to write with; by default one a core.
        executor: Does the work in place of processes of this machine.

    Returns:
        The account: {"asked", "written", "skipped": {reason: count}, "captions": {reason: count}, "splits": {split:
        its own account}}.

    Raises:
        UserError: where raw files are missing or broken, a split is unknown, or the disk is full.
    """
    config, own_cache = _with_cache(config, out)
    source: Source = source_module(config.name)
    plans, target, written = source.plan(config), open_target(out), writing_identity(config)
    accounts: dict[str, Any] = {}
    todo: dict[str, tuple[Split, str]] = {}
    for name, plan in plans.items():
        place = target.child(name)
        if plan.remote is not None:
            accounts[name] = _mirror(place, plan.remote)
            continue
        if plan.folder is not None:
            accounts[name] = _link(place, plan.folder)
            continue
        if isinstance(place, LocalTarget) and place.folder.is_symlink():
            place.folder.unlink()  # nothing of ours may be written into somebody's own shards
        fingerprint = _fingerprint(config, name, plan, written)
        done = finished_account(place, fingerprint)
        if done is None:
            todo[name] = (plan.load(), fingerprint)
        else:
            remove_side_records(place)
            accounts[name] = done
    meter = _Meter(progress, [a["asked"] for a in accounts.values()], [len(s) for s, _ in todo.values()])
    for name, (split, fingerprint) in todo.items():
        accounts[name] = write_split(
            split,
            target.child(name),
            name=f"{config.name}/{name}",
            fingerprint=fingerprint,
            layout=_layout(config, name, plans[name]),
            clean=config.clean,
            workers=workers,
            executor=executor,
            progress=meter.report,
        )
        meter.finished(len(split))
    if own_cache is not None:
        shutil.rmtree(own_cache, ignore_errors=True)  # not before: a stopped job goes on with it
    return _sum({name: accounts[name] for name in plans})


def _with_cache(config: SourceConfig, out: str | Path) -> tuple[SourceConfig, Path | None]:
    """A configuration with a folder for tables: the user's, or one of ours, which is returned to be removed."""
    if config.cache is not None:
        return config, None
    # Tables are mapped into memory, which no object store can do.
    own = Path(tempfile.mkdtemp(prefix="trimline-")) if "://" in str(out) else Path(out) / _CACHE
    return replace(config, cache=str(own)), own


def writing_identity(config: SourceConfig) -> dict[str, Any]:
    """Everything that shards depend on besides what is in their source, as JSON values.

    Raises:
        UserError: where a list of exclusions is missing or holds nothing.
    """
    clean = asdict(config.clean) | {"exclude": list(read_exclusions(config.clean.exclude).digest)}
    return {
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
        shard_samples=config.shard_samples, shard_bytes=config.shard_bytes, max_side=config.max_side, order=order
    )


def _link(place: Target, folder: Path) -> dict[str, Any]:
    """Makes `place` lead to a folder of shards; returns the account of its index.

    Raises:
        UserError: a shard of the index is missing or of another size, or `place` is a folder with something in it, or
            in an object store.
    """
    link = _local(place)
    index, _ = load_index(folder)
    for shard in index["shardlist"] if remote_url(folder) is None else ():
        path = folder / shard["url"]
        if not path.exists() or path.stat().st_size != shard["filesize"]:
            raise UserError(f"{path} is missing or not of the size in {folder / INDEX}; run `trimline index {folder}`")
    _unlink(link)
    if remote_url(link) is not None:
        shutil.rmtree(link)  # the index of other shards, a copy
    elif link.exists():
        raise UserError(f"{link} holds other shards; remove it, or give another folder with --out DIR")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    account: dict[str, Any] = index["account"]
    return account


def _local(place: Target) -> Path:
    if not isinstance(place, LocalTarget):
        raise UserError(f"{place}: shards that are there already can only be named by a local folder; copy them")
    return place.folder


def _unlink(link: Path) -> None:
    """Removes links on the way to a folder: nothing of ours may be written into somebody's shards."""
    if link.parent.is_symlink():
        link.parent.unlink()
    if link.is_symlink():
        link.unlink()


def _mirror(place: Target, remote: RemoteFolder) -> dict[str, Any]:
    """Copies the index of shards behind a URL; returns its account.

    Raises:
        UserError: it cannot be read, or `place` is a folder with other shards in it, or in an object store.
    """
    folder = _local(place)
    _unlink(folder)
    if folder.exists() and remote_url(folder) is None and any(folder.iterdir()):
        raise UserError(f"{folder} holds other shards; remove it, or give another folder with --out DIR")
    account: dict[str, Any] = mirror_index(remote, folder)["account"]
    return account


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
