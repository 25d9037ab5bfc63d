"""`trimline predict`: a fine-tuned model on raw pictures and texts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from launch.answers import Answer
from launch.report.table import aligned
from pipeline.trimmed_model import Prediction, TrimmedModel


def predict_command(folder: Path, pictures: Sequence[str], texts: Sequence[str], device: str | None) -> Answer:
    """Judges text i of picture i, or every text of the one picture.

    Raises:
        UserError: No such model or picture, or numbers that do not fit.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = TrimmedModel.from_pretrained(folder.expanduser(), where).predict(pictures, texts)
    names = list(pictures) * (len(texts) if len(pictures) == 1 else 1)
    data = {
        "model": str(folder),
        "predictions": [
            {"image": name, "text": text, **asdict(each)} for name, text, each in zip(names, texts, found, strict=True)
        ],
    }
    rows = [_row(*row) for row in zip(names, texts, found, strict=True)]
    return 0, data, "\n".join(aligned([["picture", "text", "says", "p(true)", "times fewer MACs"], *rows], left=3))


def _row(name: str, text: str, said: Prediction) -> list[str]:
    ratio = f"{said.full_gmacs / said.gmacs:.2f}"
    return [Path(name).name, text, "true" if said.true else "false", f"{said.probability:.3f}", ratio]
