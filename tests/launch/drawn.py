"""Drawn data for whole runs of a task."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def drawn_root(answer: Callable[..., Any], folder: Path, task: str, sizes: Sequence[str]) -> Path:
    """Pictures of a task in its published files (in raw/), and shards of these beside shapes for pre-training.

    Args:
        answer: Has the command carry words out.
        folder: Gets raw/ and root/.
        task: What `trimline draw` knows it by.
        sizes: Of its splits, such as train=60.

    Returns:
        root/, with a folder for either data set.
    """
    raw, root = folder / "raw", folder / "root"
    words = [word for size in sizes for word in ("--size", size)]
    drawn = answer("draw", task, "--out", str(raw), *words, "--image-size", "32")
    assert drawn["sizes"] == {split: int(n) for split, n in (size.split("=") for size in sizes)}
    answer("shard", task, "--root", str(raw), "--out", str(root / task), "--workers", "1")
    few = json.dumps({"train": 64, "val": 0, "test": 16, "unseen": 0})
    given = ["--sizes", few, "--image_size", "32", "--workers", "1"]
    answer("shard", "shapes", "--out", str(root / "shapes"), *given)
    return root
