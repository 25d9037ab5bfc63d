"""What models and splits are called in tables, captions and files' names, where no whole path may stand."""

import os
from collections.abc import Sequence
from pathlib import Path


def model_name(path: Path) -> str:
    """``demo`` of a run, ``demo/pretrain`` of an export in it, ``vit/model.safetensors`` of a file."""
    return names_apart([path])[0]


def names_apart(paths: Sequence[Path]) -> list[str]:
    """As short as they are while different models have different names.

    Args:
        paths: Run folders, export folders, or files of weights.
    """
    parts = [_parts(path) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _parts(path: Path) -> tuple[str, ...]:
    """Those of a path, its end put together where the last part alone says little."""
    whole = Path(os.path.abspath(path))  # `..` goes, links stay
    parts = whole.parts
    if len(parts) > 4 and parts[-1] == "export" and parts[-3] == "stages":
        return (*parts[:-4], f"{parts[-4]}/{parts[-2]}")
    return (*parts[:-2], "/".join(parts[-2:])) if whole.is_file() else parts


def split_name(split: str) -> str:
    """A run's own split by its name, a folder from elsewhere by the end of its path."""
    path = Path(split)
    return "/".join(path.parts[-2:]) if path.is_absolute() else split


def split_in_file(split: str) -> str:
    """As part of a file's name: splits of two data sets may have one name."""
    return split_name(split).replace("/", "-")
