"""`trimline analyse survivors EXPORT`: which patches of a picture are left for each of several sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_described
from launch.answers import Answer
from launch.devices import device_of
from launch.model_names import model_name
from launch.report.survivor_rows import Step
from launch.report.survivors import in_common
from launch.report.table import aligned
from launch.survivors_figure import Kept, save_kept, shown_steps
from launch.trained_export import is_export
from launch.trained_run import config_of
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import ASKED, pictures_of
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, normalise
from pipeline.exports import load_backbone, load_classification_model
from pipeline.measure.survivors import Sight, overlay, pruned_sights, text_overlay, trimmed_sights
from pipeline.models.backbone import Backbone
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimmed_model import prepared_input, read_picture


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model that leaves patches out; `pruning` is pre-training's, None where trimmers do it."""

    model: Backbone | ClassificationModel
    pruning: PruningConfig | None
    tokenizer: Tokenizer
    transform: TransformConfig
    max_tokens: int
    device: str

    def sights(self, pixels: Tensor, batch: ImageTextBatch) -> tuple[list[Sight], list[Sight]]:
        """What is left of the picture and of the sentences, as the report's stage finds it."""
        if isinstance(self.model, ClassificationModel):
            image, text, _ = trimmed_sights(self.model, pixels, batch)
            return image, text
        assert self.pruning is not None
        return pruned_sights(self.model, self.pruning, pixels, batch), []

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        backbone = self.model.backbone if isinstance(self.model, ClassificationModel) else self.model
        return backbone.config.vision.grid


def survivors_command(folder: Path, pictures: Sequence[Path], texts: Sequence[str], out: Path) -> Answer:
    """`trimline analyse survivors EXPORT --image FILE --text A --text B --out DIR`.

    Args:
        folder: Export of pre-training inside its run, or of a trimmed model anywhere.
        pictures: Files.
        texts: What is said or asked; each of each picture.
        out: Folder of the figure (PNG) and its numbers (CSV).

    Raises:
        UserError: The model leaves nothing out, or does not read one picture with one text; a picture cannot be read.
    """
    opened = _open(folder.expanduser())
    if blank := [text for text in texts if not opened.tokenizer.reads(text)]:
        raise UserError(f"--text {blank[0]!r} has no word that the model reads; give a statement or a question")
    found = [_looked_at(opened, picture.expanduser(), texts) for picture in pictures]
    kept = [each for of_picture in found for each in of_picture]
    name = f"survivors-{model_name(folder).replace('/', '-')}"
    again = " (in the place of older ones)" if (out / f"{name}.csv").exists() else ""
    save_kept(out, name, model_name(folder), kept)
    cut = sum(opened.tokenizer.cuts(text, opened.max_tokens) for text in texts)
    lines = [
        *_table(kept),
        *([f"{cut} of the texts are longer than the model reads"] if cut else []),
        *(_in_common(of_picture) for of_picture in found if len(texts) > 1),
    ]
    data = {"model": str(folder), "grid": list(opened.grid), "survivors": [_numbers(each) for each in kept]}
    return 0, data, "\n".join([*lines, f"Figure and numbers: {out / name}.png, .csv{again}"])


def _numbers(kept: Kept) -> dict[str, Any]:
    """In the form of survivors.json."""
    steps, text_steps = (
        [{"name": step.name, "kept": sorted(step.kept)} for step in each] for each in (kept.patches, kept.words)
    )
    words = {"tokens": list(kept.tokens), "text_steps": text_steps}
    return {"image": kept.picture, "text": kept.sentence, "steps": steps, **words}


def _open(folder: Path) -> _Opened:
    if not is_export(folder):
        raise UserError(f"{folder} is no export: give one, such as RUN/stages/pretrain/export of a run")
    described, device = read_described(folder / "config.json"), device_of(None)
    model, pruning = _pretrained(folder) if described.get("kind") == "backbone" else (_trimmed(folder), None)
    transform, max_tokens = prepared_input(folder, described)
    tokenizer = Tokenizer.from_pretrained(folder)
    asked = isinstance(model, ClassificationModel) and model.classes.text in ASKED
    return _Opened(
        model=model.to(device),
        pruning=pruning,
        tokenizer=tokenizer.of_questions() if asked else tokenizer,
        transform=transform,
        max_tokens=max_tokens,
        device=device,
    )


def _pretrained(folder: Path) -> tuple[Backbone, PruningConfig]:
    run = folder.absolute().parent.parent.parent
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{folder} does not say how its pre-training pruned, for it lies in no run: give it where it was made, "
            "RUN/stages/pretrain/export, or the export of a trimmed model"
        )
    pruning = config_of(run).pretrain.pruning
    if not pruning.looks:
        raise UserError(
            f"{folder}: pre-training pruned by {pruning.method}, which looks at neither picture nor text; give a model "
            "of elip, evit or tome, or a trimmed one"
        )
    return load_backbone(folder), pruning


def _trimmed(folder: Path) -> ClassificationModel:
    model, described = load_classification_model(folder)
    if model.classes.task == "captioning" or pictures_of(model.classes.text) > 1:
        raise UserError(
            f"{folder} holds a {described['kind']!r} model; survivors are drawn of models that read one picture with "
            "one text (the report of its run shows what a captioner keeps)"
        )
    if model.trimmers is None:
        raise UserError(f"{folder} holds an untrimmed model, of which all is left; give the export of a trimmed one")
    return model


def _looked_at(opened: _Opened, picture: Path, texts: Sequence[str]) -> list[Kept]:
    """What is left of a picture for each text."""
    pixels = read_picture(picture, opened.transform)
    batch = _batch(opened, pixels, texts).to(opened.device)
    image, words = opened.sights(normalise(batch.pixels, opened.transform.mean, opened.transform.std), batch)
    found = []
    for row, text in enumerate(texts):
        told = overlay(batch, row, opened.grid, image) | text_overlay(batch, row, opened.tokenizer, words)
        patches, of_text = (
            [Step(each["name"], frozenset(each["kept"])) for each in told[key]] for key in ("steps", "text_steps")
        )
        found.append(
            Kept(
                picture=picture.name,
                sentence=text,
                pixels=pixels,
                grid=opened.grid,
                patches=patches,
                tokens=tuple(told["tokens"]) if words else (),
                words=of_text,
            )
        )
    return found


def _batch(opened: _Opened, pixels: Tensor, texts: Sequence[str]) -> ImageTextBatch:
    """One picture with every text."""
    ids_BL, mask_BL = opened.tokenizer.encode(texts, opened.max_tokens)
    longest, count = int(mask_BL.sum(1).max()), len(texts)
    names = [str(row) for row in range(count)]
    same: dict[str, Any] = dict.fromkeys(("keys", "groups", "clusters"), names)
    return ImageTextBatch(
        pixels=pixels.expand(count, *pixels.shape),
        token_ids=ids_BL[:, :longest],
        token_mask=mask_BL[:, :longest],
        labels=torch.full((count,), -1),
        sample_ids=torch.zeros(count, dtype=torch.long),
        draw_seeds=torch.zeros(count, dtype=torch.long),
        texts=list(texts),
        captions=[[] for _ in texts],
        skipped=[],
        **same,
    )


def _table(kept: Sequence[Kept]) -> list[str]:
    """For each picture and sentence how many patches are left at the steps that the figure shows."""
    steps = shown_steps(kept)
    cells = [["picture", "sentence", *steps]]
    for each in kept:
        left = {step.name: str(len(step.kept)) for step in each.patches}
        cells.append([each.picture, each.sentence, *(left.get(name, "-") for name in steps)])
    return aligned(cells, left=2)


def _in_common(of_picture: Sequence[Kept]) -> str:
    return f"{of_picture[0].picture}: {in_common([each.patches for each in of_picture])}"
