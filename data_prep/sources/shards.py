"""Shards that are there already, ours or img2dataset's: used where they lie, in a local folder or behind a URL.

Files: a folder for each split (`train/`, `val/`, ...) with tar shards and the index that `trimline shard` or
`trimline index` writes; or a folder for each data set with such folders in it, whose splits are then called
`coco/train`, `sbu/train`, as a mix names them (configs/data/4m.yaml). Any of these folders may be a link. A local
folder is linked into the run's; `--root` may also be a URL (https://, s3://, gs:// or whatever fsspec knows), of which
only the indexes are copied. Object stores are listed; splits behind http(s) are named with `--splits`.
"""

import hashlib
from functools import lru_cache

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.index import INDEX
from data_prep.patience import Patience
from data_prep.records import Split
from data_prep.remote import RemoteFolder, is_url, local_path
from data_prep.sources import PlannedSplit, SourceConfig, check_sizes

SPLITS: tuple[str, ...] = ()  # whatever folders there are; their sizes are as they are
_PATIENCE = Patience(stall_seconds=10.0, give_up_seconds=60.0)  # somebody waits for the command to begin
_WANTED = "shards needs a folder with a folder of indexed shards for each split, such as train/index.json"


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans a link to each folder with an index, or a copy of its index from behind a URL.

    Raises:
        UserError: there is no such folder.
    """
    check_sizes(config, SPLITS)
    if config.root is None:
        raise UserError(f"data.root is not given: {_WANTED}; give it with --data.root DIR")
    if config.root.startswith("pipe:"):
        raise UserError(f"data.root={config.root} is a command, which is never run; give a folder or a URL")
    for name in config.splits:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"data.splits names {name!r}, which is no folder inside of data.root; give such as train")
    return _remote(config.root, config.splits) if is_url(config.root) else _linked(config)


def _linked(config: SourceConfig) -> dict[str, PlannedSplit]:
    root = local_path(str(config.root))
    folders = sorted(path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/{INDEX}"))
    names = {folder.relative_to(root): folder for folder in folders}
    found = {path.as_posix(): folder for path, folder in names.items() if not _is_hidden(path.as_posix())}
    if not found:
        raise UserError(f"data.root={config.root}: {_WANTED}; `trimline index DIR` makes the index of a split's folder")
    for name in config.splits:
        if name not in found:
            raise UserError(f"data.splits names {name!r}, but data.root={config.root} has {', '.join(found)}")
    return {
        name: PlannedSplit(identity={"index": sha256_file(folder / INDEX)}, load=_nothing, folder=folder)
        for name, folder in found.items()
        if not config.splits or name in config.splits
    }


@lru_cache(maxsize=8)  # a run plans several times, and an index of a large corpus is tens of megabytes
def _remote(root: str, splits: tuple[str, ...]) -> dict[str, PlannedSplit]:
    folder = RemoteFolder(root, _PATIENCE)
    names = sorted(splits) or [name for name in folder.splits() if not _is_hidden(name)]
    if not names:
        raise UserError(f"data.root={root}: {_WANTED}; `trimline index DIR` makes the index before it is copied there")
    plans = {}
    for name in names:
        remote = folder.child(name)
        digest = hashlib.sha256(remote.read_whole(INDEX)).hexdigest()
        plans[name] = PlannedSplit(identity={"index": digest, "url": remote.url}, load=_nothing, remote=remote)
    return plans


def _is_hidden(name: str) -> bool:
    """Whether a folder is not finished, as a download in .download-train, or leads out, as .. in a store does."""
    return any(part.startswith(".") for part in name.split("/"))


def _nothing() -> Split:
    raise RuntimeError("shards that are there already are linked, not written")
