"""Small splits and export folders to evaluate, without training."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.checkpoint import export_weights
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.exports import describe_method
from pipeline.generation import prompt_ids
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.setup import export_config
from pipeline.tasks.answer_list import ANSWERS, describe_answers
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import STATEMENT, AnswerList, Captions, Classes, TaskName
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.generative_vqa import AnsweringModel, RankedAnswers
from pipeline.trimming.trimmers import SMARTTRIM, TrimmerConfig
from tests.pipeline.data.samples import Listed, png
from tests.pipeline.small import small_config

CAPTIONS = (2, 0, 5, 1, 3, 0, 1)
"""Of the images of a split, again and again."""
COLOURS = ("red", "green", "blue")
TOKENIZER = Tokenizer.train(
    [f"{word} {number} of {colour}" for word in ("caption", "statement", "a photo of a") for number in range(30)
     for colour in COLOURS],
    TokenizerConfig(vocab_size=200),
)  # fmt: skip


def split(folder: Path, images: int, captions: Sequence[int] = CAPTIONS) -> Path:
    """Noise with as many captions each as `captions` says, two statements, and a scene of one or two things."""
    records = [
        Record(
            key=f"s{i}",
            source="test",
            id=str(i),
            images={"": png(i)},
            captions=[f"caption {k + 7 * i % 30} of {COLOURS[i % 3]}" for k in range(captions[i % len(captions)])],
            statements=[{"text": f"statement {k} of {i}", "label": k == i % 2} for k in range(2)],
            fields={
                "colour": COLOURS[i % 3],
                "number": i % 3,
                "scene": [{"colour": COLOURS[(i + k) % 3], "x": 1.5} for k in range(1 + i % 2)],
            },
        )
        for i in range(images)
    ]
    options = {"name": folder.name, "fingerprint": "test", "layout": Layout(shard_samples=5)}
    write_split(Listed(records), folder, workers=1, **options)
    return folder


def sized(backbone: BackboneName) -> ModelConfig:
    config = small_config(backbone=backbone)
    words = TOKENIZER.vocab_size + 2
    text = replace(config.text, vocab_size=words, pad_id=None if config.text.pad_id is None else TOKENIZER.pad_id)
    return replace(config, text=text)


def lively(backbone: BackboneName) -> Backbone:
    """A model whose features and scores lie far apart, which those of a fresh one do not."""
    torch.manual_seed(0)
    model = build_model(sized(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model.eval()


def loader_of(config: ModelConfig) -> LoaderConfig:
    return LoaderConfig(height=config.vision.height, width=config.vision.width_px, max_tokens=9, workers=0)


def export(folder: Path, backbone: BackboneName = "albef") -> Path:
    model = lively(backbone)
    described = export_config("backbone", model.config, loader_of(model.config))
    export_weights(folder, model.state_dict(), json.loads(json.dumps(described)), TOKENIZER)
    return folder


def statement_export(folder: Path, classes: Classes = STATEMENT, backbone_name: BackboneName = "albef") -> Path:
    """Of a model whose trimmers keep about half."""
    trimmers = TrimmerConfig(keep_bias=0.1, last_std=0.5)
    backbone = lively(backbone_name)
    model = ClassificationModel(backbone, trimmers, classes=classes)
    described = export_config(classes.task, backbone.config, loader_of(backbone.config), target=2.0,
                              **describe_method(model, "smarttrim"))  # fmt: skip
    export_weights(folder, model.state_dict(), json.loads(json.dumps(described)), TOKENIZER)
    return folder


def answering_export(folder: Path, names: Sequence[str], candidates: int) -> Path:
    """Of a decoder that ranks these answers, whose trimmers keep about half."""
    trimmers, classes = TrimmerConfig(keep_bias=0.1, last_std=0.5), RankedAnswers.of(names, TOKENIZER, candidates)
    model = AnsweringModel(lively("blip"), trimmers, SMARTTRIM, classes)
    sizes = model.backbone.config
    described = export_config("vqa_generative", sizes, loader_of(sizes), target=2.0, candidates=candidates,
                              answer_list=describe_answers(names), **describe_method(model, "smarttrim"))  # fmt: skip
    beside = {ANSWERS: list(names)}
    export_weights(folder, model.state_dict(), json.loads(json.dumps(described)), TOKENIZER, beside)
    return folder


def answers_export(folder: Path, task: TaskName, names: Sequence[str]) -> Path:
    """Of a model whose trimmers keep about half: ``vqa`` tells answers apart, ``vqa_generative`` ranks the list."""
    if task == "vqa_generative":
        return answering_export(folder, names, 4)
    statement_export(folder, AnswerList("vqa", tuple(names)))
    (folder / ANSWERS).write_text(json.dumps(list(names)))
    return folder


def caption_export(folder: Path) -> Path:
    """Of a captioner whose trimmers keep about half."""
    trimmers, search = TrimmerConfig(keep_bias=0.1, last_std=0.5), {"prompt": "a photo of", "max_length": 9}
    given = prompt_ids(TOKENIZER, search["prompt"]).shape[1]  # type: ignore[arg-type]
    model = CaptioningModel(lively("blip"), trimmers, classes=Captions("captioning", (), given, 3))
    sizes = model.backbone.config
    described = export_config("captioning", sizes, loader_of(sizes), target=2.0, trimmers=asdict(trimmers),
                              captions=search, given=given)  # fmt: skip
    export_weights(folder, model.state_dict(), json.loads(json.dumps(described)), TOKENIZER)
    return folder
