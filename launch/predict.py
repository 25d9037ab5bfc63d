"""`trimline predict`: a fine-tuned model on raw pictures and texts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from launch.answers import Answer
from launch.report.table import aligned
from pipeline.tasks.classes import STATEMENT
from pipeline.trimmed_model import Prediction, TrimmedModel


def predict_command(folder: Path, pictures: Sequence[str], texts: Sequence[str], device: str | None) -> Answer:
    """Judges text i of picture i, or every text of the one picture; a statement has also whether it is true.

    Raises:
        UserError: No such model or picture, or numbers that do not fit.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = TrimmedModel.from_pretrained(folder.expanduser(), where)
    found, judges = model.predict(pictures, texts), model.model.classes == STATEMENT
    names = list(pictures) * (len(texts) if len(pictures) == 1 else 1)
    data = {
        "model": str(folder),
        "predictions": [
            {"image": name, "text": text, **({"true": each.true} if judges else {}), **asdict(each)}
            for name, text, each in zip(names, texts, found, strict=True)
        ],
    }
    rows = [_row(*row) for row in zip(names, texts, found, strict=True)]
    head = ["picture", "text", "says", "p(true)" if judges else "p", "times fewer MACs"]
    return 0, data, "\n".join(aligned([head, *rows], left=3))


def _row(name: str, text: str, said: Prediction) -> list[str]:
    ratio = f"{said.full_gmacs / said.gmacs:.2f}"
    return [Path(name).name, text, said.answer, f"{said.probability:.3f}", ratio]
