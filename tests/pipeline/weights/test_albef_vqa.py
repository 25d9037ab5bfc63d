"""ALBEF's weights that were fine-tuned for VQA: a decoder beside bare names of the text encoder; ranked as it ranks."""

import json
from pathlib import Path

import torch

from data_prep.files import read_json
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.models.albef import AlbefAnswering
from pipeline.process import Process
from pipeline.tasks.generative_vqa import AnsweringModel
from pipeline.weights.folders import import_weights, load_model
from pipeline.weights.loaded import Hints
from tests.pipeline.small import small_config

HINTS = Hints(vision_heads=4, text_heads=4)
LISTED = ["yes", "no", "red"]


def official(folder: Path, model: AlbefAnswering) -> Path:
    """The file as ALBEF's VQA.py writes it: both names of tied tensors, momentum copies, tables of numbers."""
    stored = {name.replace("text_encoder.bert.", "text_encoder."): each for name, each in model.state_dict().items()}
    words = stored["text_decoder.bert.embeddings.word_embeddings.weight"]
    stored |= {"text_decoder.cls.predictions.decoder.weight": words}
    stored |= {"text_decoder.cls.predictions.decoder.bias": stored["text_decoder.cls.predictions.bias"]}
    stored |= {"text_encoder.embeddings.position_ids": torch.arange(9)[None]}
    for part in ("visual_encoder", "text_encoder", "text_decoder"):
        stored |= {f"{part}_m.{n.split('.', 1)[1]}": t for n, t in list(stored.items()) if n.startswith(f"{part}.")}
    torch.save({"model": stored}, folder / "w.pth")
    return folder / "w.pth"


def test_weights_of_vqa_are_imported_and_answer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AlbefAnswering(small_config()).eval()
    done = import_weights(official(tmp_path, model), "albef", tmp_path / "in", HINTS)
    assert done.kind == read_json(tmp_path / "in/config.json")["kind"] == "albef_vqa" and not done.lacking
    read, own = load_model(tmp_path / "in").model.state_dict(), model.state_dict()
    assert read.keys() == own.keys() and all(torch.equal(read[name], each) for name, each in own.items())
    words = Tokenizer.train([" ".join(LISTED), "is there a star"], TokenizerConfig(vocab_size=60))
    (tmp_path / "words").mkdir()
    listed = sorted(words._inner.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "words/vocab.txt").write_text("\n".join(token for token, _ in listed))
    (tmp_path / "answers.json").write_text(json.dumps(LISTED))
    write_published("vqa", tmp_path / "raw", {"train": 2, "val": 2}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(tmp_path / "raw")), tmp_path / "vqa", workers=1)
    given = {"tokenizer": tmp_path / "words", "answers": tmp_path / "answers.json"}
    opened, source = open_export(tmp_path / "in", "vqa_generative", str(tmp_path / "vqa/val"), **given)
    assert isinstance(opened, AnsweringModel) and opened.classes.smoothing == 0
    assert source.tokenizer.max_words == 50 and not source.tokenizer.end
    (ids,), (mask,) = source.tokenizer.encode(["is there a star"], 20)
    assert words.sep_id not in ids[mask] and all(tokens[-1] == words.sep_id for tokens in opened.classes.tokens)
    asked = Evaluation(model=tmp_path / "in", task="vqa_generative", split=str(tmp_path / "vqa/val"), **given)
    found = evaluate_export(asked, Process())
    assert found["scores"][0]["metric"] == "accuracy"
