"""What an evaluation has no scores of, and why, for who reads its folder later. Light to import: no torch."""

from pathlib import Path

from data_prep.files import write_json

UNSCORED = "unscored"
"""Folder in the stage's, with a file MODEL-SPLIT.json for each."""


def note_unscored(folder: Path, model: str, split: str, why: str) -> None:
    """Writes it down.

    Args:
        folder: Of the stage.
        model: The stage that trained it.
        split: That was evaluated.
        why: A reason, and how to mend it.
    """
    path = folder / UNSCORED / f"{model}-{split.replace('/', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": model, "split": split, "why": why})
