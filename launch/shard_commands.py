"""What `trimline index`, `verify` and `stats` do with folders of shards."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.afar import send_back, standing_for
from data_prep.errors import UserError
from data_prep.faults import NAMED, Fault, counts
from data_prep.index import INDEX, SAMPLES, read_shard_list
from data_prep.make_index import index_folder
from data_prep.remote import is_url, local_path
from data_prep.repair import LOST, Repair, repair_folder
from data_prep.stats import Counts, count_folder, describe
from data_prep.verify import find_splits, verify_folder
from launch.answers import INTERNAL, Answer

FAULTY = INTERNAL
"""Exit code where a fault was found, as that of any checker of files."""

_SPREADS = ("captions_per_sample", "caption_words", "caption_characters", "width", "height", "short_side", "aspect")

Show = Callable[[int, int], None]
Tell = Callable[[object], str]


@contextmanager
def _bar(name: str) -> Iterator[Show]:
    """A progress bar on a terminal, over bytes done."""
    with tqdm(desc=name, unit="B", unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield show


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns what the system says of files into the user's error, for exit code 1 would mean that there is a fault."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot use {error.filename or folder}: {error.strerror}; mend the permissions or the disk, then run the "
            "same command again"
        ) from error


@contextmanager
def _here(where: str) -> Iterator[tuple[Path, Tell]]:
    """The folder that a user names, or one that stands for it where that is a URL; and how to tell of paths in it."""
    if not is_url(where):
        yield local_path(where), str
        return
    with standing_for(where) as folder:

        def tell(what: object) -> str:
            return str(what).replace(str(folder), where.rstrip("/"))

        try:
            yield folder, tell
        except UserError as error:
            raise UserError(tell(error)) from error


def index_command(where: str, workers: int | None) -> Answer:
    """`trimline index`."""
    with _here(where) as (folder, tell):
        with _told(folder), _bar(folder.name) as show:
            account = index_folder(folder, workers, show)
        if is_url(where):
            send_back(folder, (SAMPLES, INDEX))
        place = tell(folder / INDEX)
    lines = [f"{place}: {account['written']} of {account['asked']} samples"]
    lines += [f"  skipped {count}: {reason}" for reason, count in account["skipped"].items()]
    return 0, {"index": place, **account}, "\n".join(lines)


def verify_command(where: str, *, decode: bool, repair: bool, workers: int | None) -> Answer:
    """`trimline verify`: a split folder, or a folder of such; repairs them where that is asked.

    Raises:
        UserError: they cannot be read, or shall be repaired in a store.
    """
    if repair and is_url(where):
        raise UserError(f"{where}: shards are repaired in a local folder alone; copy them, repair, and copy them back")
    with _here(where) as (folder, tell):
        return _verify(folder, tell, decode=decode, repair=repair, workers=workers)


def _verify(folder: Path, tell: Tell, *, decode: bool, repair: bool, workers: int | None) -> Answer:
    with _told(folder):
        splits = find_splits(folder)
    faults: dict[Path, list[Fault]] = {}
    repairs: dict[Path, Repair] = {}
    for split in splits:
        with _told(split), _bar(split.name) as show:
            if repair:
                repairs[split] = repair_folder(split, decode=decode, workers=workers, progress=show)
                faults[split] = repairs[split].faults
            else:
                faults[split] = verify_folder(split, decode=decode, workers=workers, progress=show)
    listed = [(tell(split), replace(fault, what=tell(fault.what))) for split in splits for fault in faults[split]]
    data: dict[str, Any] = {
        "splits": [tell(split) for split in splits],
        "counts": counts(fault for _, fault in listed),
        "faults": [{"split": split, **asdict(fault)} for split, fault in listed],
    }
    lines = [f"{split}: {fault}" for split, fault in listed] or [f"{tell(folder)}: all is well: {_looked_at(splits)}"]
    if repair:
        data["repairs"] = {str(split): _repair_data(split, done) for split, done in repairs.items() if done.faults}
        lines += [line for split, done in repairs.items() if done.faults for line in _repair_lines(split, done)]
    return FAULTY if listed else 0, data, "\n".join(lines)


def _looked_at(splits: Sequence[Path]) -> str:
    """How much there is in sound splits, so that an empty folder is seen to be one."""
    shards = [shard for split in splits for shard in read_shard_list(split)["shardlist"]]
    return f"{sum(shard['nsamples'] for shard in shards):,} samples in {len(shards):,} shards"


def _repair_data(split: Path, done: Repair) -> dict[str, Any]:
    data = {key: value for key, value in asdict(done).items() if key != "faults"}
    return data | {"lost": dict(done.lost), "lost_file": str(split / LOST) if done.lost else None}


def _repair_lines(split: Path, done: Repair) -> Iterator[str]:
    total = done.lost.total()
    yield f"{split}: repaired; {done.kept} samples are kept, {total} were lost"
    for lost in done.named:
        if lost.key is None:
            yield f"  lost {lost.samples} samples of {lost.shard} whose keys are unknown: {lost.what}"
        else:
            yield f"  lost {lost.shard}:{lost.key}: {lost.what}"
    if total > len(done.named) == NAMED:
        yield f"  ... all of them are in {split / LOST}"
    for verb, names in (("wrote anew", done.rewritten), ("removed", done.removed), ("set aside", done.set_aside)):
        if names:
            yield f"  {verb}: {', '.join(names)}"
    yield from (f"  renamed: {old} to {new}" for old, new in done.renamed.items())
    if total:
        yield "  run the command that wrote the shards again to get back what was lost"


def stats_command(where: str, workers: int | None) -> Answer:
    """`trimline stats`."""
    with _here(where) as (folder, tell):
        return _stats(folder, tell, workers)


def _stats(folder: Path, tell: Tell, workers: int | None) -> Answer:
    splits: dict[str, dict[str, Any]] = {}
    total = Counts()
    with _told(folder):
        found = find_splits(folder)
    for split in found:
        with _told(split), _bar(split.name) as show:
            counted = count_folder(split, workers, show)
        splits[split.name] = describe(counted)
        total.add(counted)
    data: dict[str, Any] = {"folder": tell(folder), "splits": splits, "total": describe(total)}
    columns = splits if len(splits) == 1 else splits | {"total": describe(total)}
    return 0, data, _table({name: dict(_cells(column)) for name, column in columns.items()})


def _cells(column: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A split's figures by their names in the table."""
    yield "samples", f"{column['samples']:,}"
    yield "shards", f"{column['shards']:,}"
    for name, size in column["bytes"].items():
        yield f"MiB of {name}", f"{size / 2**20:,.1f}"
    for group, title in (("sources", "from"), ("formats", "pictures:"), ("unusable", "unusable:")):
        for name, count in column[group].items():
            yield f"{title} {name}", f"{count:,}"
    yield "captions", f"{column['captions']:,}"
    yield "statements", f"{column['statements']:,}"
    yield "questions", f"{column['questions']:,}"
    for key in _SPREADS:
        spread = column[key]
        if spread is not None:
            name = key.replace("_", " ")
            yield f"{name}: mean", f"{spread['mean']:,.2f}"
            yield f"{name}: 5%, 50%, 95%", ", ".join(f"{spread[p]:,g}" for p in ("p5", "p50", "p95"))
            yield f"{name}: least, greatest", f"{spread['min']:,g}, {spread['max']:,g}"
    words = column["vocabulary"]
    yield "different words", f"{'' if words['complete'] else 'more than '}{words['distinct']:,}"
    yield "of them once", f"{words['once']:,}"
    for size, share in words["coverage"].items():
        yield f"{int(size):,} commonest cover", f"{share:.1%}"


def _table(columns: Mapping[str, Mapping[str, str]]) -> str:
    from launch.report.table import aligned  # matplotlib comes with it

    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [["", *columns], *([name, *(column.get(name, "-") for column in columns.values())] for name in names)]
    return "\n".join(aligned(rows, left=1))
