"""Shards that are there already, ours or img2dataset's: used where they lie, linked into the run's folder.

Files: a folder for each split (`train/`, `val/`, ...) with tar shards and the index that `trimline shard` or
`trimline index` writes; or a folder for each data set with such folders in it, whose splits are then called
`coco/train`, `sbu/train`, as a mix names them (configs/data/4m.yaml). Any of these folders may be a link.
"""

from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.index import INDEX
from data_prep.records import Split
from data_prep.sources import PlannedSplit, SourceConfig, check_sizes

SPLITS: tuple[str, ...] = ()  # whatever folders there are; their sizes are as they are


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans a link to each folder with an index.

    Raises:
        UserError: there is no such folder.
    """
    check_sizes(config, SPLITS)
    wanted = "shards needs a folder with a folder of indexed shards for each split, such as train/index.json"
    if config.root is None:
        raise UserError(f"data.root is not given: {wanted}; give it with --data.root DIR")
    root = Path(config.root).expanduser()
    found = sorted(path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/{INDEX}"))
    # What lies in a hidden folder is not finished, such as a download's .download-train.
    folders = [folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(root).parts)]
    if not folders:
        raise UserError(f"data.root={config.root}: {wanted}; `trimline index DIR` makes the index of a split's folder")
    return {
        folder.relative_to(root).as_posix(): PlannedSplit(
            identity={"index": sha256_file(folder / INDEX)}, load=_nothing, folder=folder
        )
        for folder in folders
    }


def _nothing() -> Split:
    raise RuntimeError("shards that are there already are linked, not written")
