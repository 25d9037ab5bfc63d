"""`trimline predict`: a fine-tuned model on raw pictures and texts."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.answers import Answer
from launch.devices import device_of
from launch.report.table import aligned
from pipeline.captioner import Captioner, is_captioner
from pipeline.tasks.classes import JUDGING
from pipeline.trimmed_model import Prediction, TrimmedModel

_TOLD = 80
"""Characters of a text that the table has room for; `--json` has all."""


def predict_command(
    folder: Path,
    pictures: Sequence[str],
    texts: Sequence[str],
    device: str | None,
    captions: Mapping[str, Any],
    tokenizer: str | None,
) -> Answer:
    """Judges text i of picture i, or every text of the one picture; a captioner tells of each picture.

    Where a model judges pairs, pictures come in twos: left, right, left, right.

    A statement has also whether it is true.

    Args:
        folder: An export.
        pictures: Files.
        texts: What is judged; none for a captioner.
        device: Where to run.
        captions: How a captioner searches otherwise than its export says (`CaptionConfig`).
        tokenizer: Folder of a captioner's tokenizer, where its export has none.

    Raises:
        UserError: No such model or picture, or numbers that do not fit.
    """
    folder, where = folder.expanduser(), device_of(device)
    if is_captioner(folder):
        if texts:
            raise UserError(f"{folder} holds a captioner, which judges no texts: leave out --text")
        return _captions(Captioner.from_pretrained(folder, tokenizer, captions, where), folder, pictures)
    if not texts:
        raise UserError(f"{folder} judges texts: give at least one --text")
    if captions or tokenizer is not None:
        raise UserError(f"{folder} holds no captioner: --prompt, --beams, lengths and --tokenizer are for one")
    return _judged(TrimmedModel.from_pretrained(folder, where), folder, pictures, texts)


def _captions(model: Captioner, folder: Path, pictures: Sequence[str]) -> Answer:
    told = model.caption(pictures)
    said = [{"image": name, "caption": caption} for name, caption in zip(pictures, told, strict=True)]
    rows = [[Path(name).name, caption] for name, caption in zip(pictures, told, strict=True)]
    data = {"model": str(folder), "predictions": said}
    return 0, data, "\n".join(aligned([["picture", "caption"], *rows], left=2))


def _judged(model: TrimmedModel, folder: Path, pictures: Sequence[str], texts: Sequence[str]) -> Answer:
    found, judges = model.predict(pictures, texts), model.model.classes in JUDGING
    each = [list(pictures[at : at + model.pictures]) for at in range(0, len(pictures), model.pictures)]
    names = each * (len(texts) if len(each) == 1 else 1)
    data = {
        "model": str(folder),
        "predictions": [
            {**_named(name), "text": text, **({"true": said.true} if judges else {}), **asdict(said)}
            for name, text, said in zip(names, texts, found, strict=True)
        ],
    }
    rows = [_row(*row) for row in zip(names, texts, found, strict=True)]
    head = ["picture", "text", "says", "p(true)" if judges else "p", "times fewer MACs"]
    return 0, data, "\n".join([*aligned([head, *rows], left=3), *_cut(found, model.max_tokens), *_unknown(found)])


def _cut(found: Sequence[Prediction], max_tokens: int) -> list[str]:
    count = sum(said.cut for said in found)
    long = f"the model reads {max_tokens} tokens, so the end did not count"
    return [f"{count} of {len(found)} texts are longer: {long}"] if count else []


def _unknown(found: Sequence[Prediction]) -> list[str]:
    words = dict.fromkeys(word for said in found for word in said.unknown)
    return [f"the tokenizer does not know, and reads as [UNK]: {', '.join(words)}"] if words else []


def _named(pictures: Sequence[str]) -> dict[str, Any]:
    return {"image": pictures[0]} if len(pictures) == 1 else {"images": list(pictures)}


def _row(pictures: Sequence[str], text: str, said: Prediction) -> list[str]:
    ratio = f"{said.full_gmacs / said.gmacs:.2f}"
    asked = textwrap.shorten(text, _TOLD, placeholder=" ...")
    return [", ".join(Path(name).name for name in pictures), asked, said.answer, f"{said.probability:.3f}", ratio]
