"""Official fine-tuned weights, imported and evaluated by the task that they were fine-tuned for."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.evaluation.classes import judged
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.exports import load_backbone
from pipeline.models.blip_tasks import FIRST_MERGING_LAYER, BlipPair
from pipeline.models.heads import TaskClassifier
from pipeline.models.meter import Meter
from pipeline.models.pairs import fuse_both
from pipeline.models.text import TextConfig
from pipeline.process import Process
from pipeline.tasks.classes import TaskName
from pipeline.tasks.classification import ClassificationModel
from pipeline.weights.blip import BLIP
from pipeline.weights.folders import import_weights, load_model
from pipeline.weights.init import InitConfig, initialise
from pipeline.weights.loaded import Hints
from pipeline.weights.mapping import export_tensors
from pipeline.weights.meter import METER
from tests.pipeline.evaluation.exports import TOKENIZER, sized

HINTS = Hints(vision_heads=4, text_heads=4, fusion_heads=4)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    TOKENIZER.save(folder := tmp_path_factory.mktemp("words"))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pairs in NLVR2's published format, as shards."""
    return prepared("nlvr2", tmp_path_factory.mktemp("nlvr2"))


def prepared(name: Any, folder: Path) -> Path:
    split = "val" if name == "vqa" else "dev"
    write_published(name, folder / "raw", {split: 12 if name == "snli_ve" else 6}, 32, 0)
    prepare(SourceConfig(name=name, root=str(folder / "raw"), shard_samples=5), folder / "data", workers=1)
    return folder / "data" / split


def disturbed(model: torch.nn.Module) -> Any:
    """Scores of a fresh model lie close together."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model.eval()


def official_pair(file: Path) -> BlipPair:
    """BLIP's model for NLVR2 of random weights, stored as its authors would; deep enough for layers that merge."""
    torch.manual_seed(0)
    config = sized("blip")
    deep = replace(config, text=replace(config.text, text_layers=FIRST_MERGING_LAYER + 1))
    model: BlipPair = disturbed(BlipPair(deep))
    torch.save({"model": export_tensors(model.state_dict(), BLIP).tensors}, file)
    return model


@torch.no_grad()
def scores_of(model: BlipPair, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B, 2) by the official forward: both pictures encoded, each layer attends to both, the head on [ENC]."""
    first, second = (model.encode_image(pixels[:, side]) for side in (0, 1))
    text = model.begin_fusion(None, ids_BL, mask_BL)
    return model.cls_head(fuse_both(model, text, first, second).features_BF)


def test_an_imported_model_for_pairs_scores_as_its_own_forward(pairs: Path, words: Path, tmp_path: Path) -> None:
    own = official_pair(tmp_path / "w.pth").double()
    import_weights(tmp_path / "w.pth", "blip", tmp_path / "in", HINTS)
    opened, source = open_export(tmp_path / "in", "nlvr2", str(pairs), words)
    assert isinstance(opened, ClassificationModel) and source.loader.crop == "none"
    model = opened.double()
    said, told = [], []
    for batch in source.batches("pairs", 7, Process()):
        pixels = source.normalise(batch.pixels).double()
        ((_, scores_BA, macs_B, _),) = judged(model, [batch], lambda _, given=pixels: given, torch.device("cpu"))
        wanted_BA = scores_of(own, pixels, batch.token_ids, batch.token_mask)
        torch.testing.assert_close(scores_BA, wanted_BA, rtol=1e-12, atol=1e-12)
        said += (wanted_BA.argmax(1) == batch.labels).tolist()
        told += macs_B.tolist()
    evaluation = Evaluation(model=tmp_path / "in", task="nlvr2", split=str(pairs), tokenizer=words)
    found = evaluate_export(replace(evaluation, predictions=tmp_path / "said.csv"), Process())
    accuracy, consistency = found["scores"]
    assert (accuracy["metric"], consistency["metric"], found["samples"]) == ("accuracy", "consistency", len(said))
    assert accuracy["value"] == pytest.approx(100 * sum(said) / len(said)) and 0 < sum(said) < len(said)
    assert found["gmacs"]["mean"] == pytest.approx(sum(told) / len(told) / 1e9)
    assert found["parameters"] == sum(parameter.numel() for parameter in own.parameters())
    assert len((tmp_path / "said.csv").read_text().splitlines()) == len(said)


def test_what_an_imported_model_for_pairs_cannot_do_is_told(pairs: Path, words: Path, tmp_path: Path) -> None:
    official_pair(tmp_path / "w.pth")
    import_weights(tmp_path / "w.pth", "blip", tmp_path / "in", HINTS)
    with pytest.raises(UserError, match="'blip_nlvr' model, which cannot do vqa; --task nlvr2 can be done with it"):
        open_export(tmp_path / "in", "vqa", str(pairs), words)
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    with pytest.raises(UserError, match="--answers is for"):
        open_export(tmp_path / "in", "nlvr2", str(pairs), words, tmp_path / "answers.json")


def official_meter(file: Path, scored: int) -> tuple[Meter, dict[str, TaskClassifier]]:
    """METER of random weights with all its tasks' heads, stored as its authors would."""
    torch.manual_seed(0)
    config = sized("meter")
    small = replace(config, vision=replace(config.vision, pre_norm=True, patch_bias=False, activation="quick_gelu"))
    model: Meter = disturbed(Meter(replace(small, vision=replace(small.vision, eps=1e-5), text=_roberta(small.text))))
    wide = model.itm_head.in_features
    shapes = {"vqa": (wide, scored), "snli": (wide, 3), "nlvr2": (2 * wide, 2)}
    heads = {task: disturbed(TaskClassifier(seen, wide, classes)) for task, (seen, classes) in shapes.items()}
    beside = {f"{t}_classifier.{name}": each for t, head in heads.items() for name, each in head.state_dict().items()}
    torch.save({"state_dict": {**export_tensors(model.state_dict(), METER).tensors, **beside}}, file)
    return model, heads


def _words_of_roberta(folder: Path) -> Path:
    """Whose padding is the second word."""
    TOKENIZER.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[UNK]"}))
    return folder


def _roberta(text: TextConfig) -> TextConfig:
    return replace(text, pad_id=1, eps=1e-5, max_positions=text.max_positions + 1)


@torch.no_grad()
def meter_scores(
    model: Meter, heads: Mapping[str, TaskClassifier], task: str, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor
) -> Tensor:
    """(B, A) by METER's own forward; of pairs the features with each picture, of its own type, side by side."""
    text = model.encode_text(ids_BL, mask_BL)
    sides = [pixels[:, side] for side in (0, 1)] if task == "nlvr2" else [pixels]
    features = [
        model.fuse(text, model.encode_image(each), image_type=torch.full((len(ids_BL),), number)).features_BF
        for number, each in enumerate(sides, 1)
    ]
    return heads["snli" if task == "snli_ve" else task](torch.cat(features, -1))


@pytest.mark.parametrize("task", ["vqa", "snli_ve", "nlvr2"])
def test_meters_heads_score_as_its_own_forward(task: TaskName, tmp_path: Path) -> None:
    answers = ["yes", "no", "1", "2", "red"]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    own, heads = official_meter(tmp_path / "w.ckpt", len(answers))
    done = import_weights(tmp_path / "w.ckpt", "meter", tmp_path / "in", HINTS)
    assert set(done.heads) == {"vqa", "snli_ve", "nlvr2"} and not any("classifier" in name for name in done.dropped)
    words = _words_of_roberta(tmp_path / "words")
    assert read_json(tmp_path / "in/config.json")["crop"] == "center"
    data = prepared(task, tmp_path / "drawn")
    given = tmp_path / "answers.json" if task == "vqa" else None
    opened, source = open_export(tmp_path / "in", task, str(data), words, given)
    assert isinstance(opened, ClassificationModel) and source.loader.crop == "center"
    batch = next(iter(source.batches(opened.classes.text, 9, Process())))
    pixels, own = source.normalise(batch.pixels).double(), own.double()
    ((_, scores_BA, _, _),) = judged(opened.double(), [batch], lambda _: pixels, torch.device("cpu"))
    wanted_BA = meter_scores(
        own, {name: head.double() for name, head in heads.items()}, task, pixels, batch.token_ids, batch.token_mask
    )
    if task == "snli_ve":  # contradiction, neutral, entailment there
        wanted_BA = wanted_BA.flip(1)
    torch.testing.assert_close(scores_BA, wanted_BA, rtol=1e-12, atol=1e-12)
    asked = Evaluation(model=tmp_path / "in", task=task, split=str(data), tokenizer=words, answers=given)
    assert evaluate_export(asked, Process())["scores"][0]["metric"] == "accuracy"


def test_meters_backbone_is_used_without_its_heads_and_their_answers_must_fit(
    pairs: Path, words: Path, tmp_path: Path
) -> None:
    own, _ = official_meter(tmp_path / "w.ckpt", 5)
    folder = tmp_path / "in"
    import_weights(tmp_path / "w.ckpt", "meter", folder, HINTS)
    begun = Meter(load_model(folder).config)
    initialise(begun, InitConfig(model=str(folder)))
    for model in (load_backbone(folder), begun):
        assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in model.state_dict().items())
    asked = folder, "vqa", str(pairs), _words_of_roberta(tmp_path / "words")
    with pytest.raises(UserError, match="no list of answers; give --answers FILE"):
        open_export(*asked)
    for answers, said in (("abcdefg", "2 too many, from 'f', 'g'; .* give that"), ("ab", "ends with 'b', 3 too early")):
        (tmp_path / "answers.json").write_text(json.dumps(list(answers)))
        with pytest.raises(UserError, match=rf"--answers .*answers\.json lists .* scores 5: .*{said}"):
            open_export(*asked, tmp_path / "answers.json")
    torch.save(export_tensors(own.state_dict(), METER).tensors, tmp_path / "bare.ckpt")
    import_weights(tmp_path / "bare.ckpt", "meter", tmp_path / "bare", HINTS)
    with pytest.raises(UserError, match="cannot do vqa; --task retrieval or zero_shot can be done with it"):
        open_export(tmp_path / "bare", "vqa", str(pairs), words)
    tensors = torch.load(tmp_path / "w.ckpt", weights_only=True)["state_dict"]
    del tensors["snli_classifier.3.bias"]
    torch.save(tensors, tmp_path / "short.ckpt")
    with pytest.raises(UserError, match=r"1 missing \(snli_classifier\.3\.bias\)"):
        import_weights(tmp_path / "short.ckpt", "meter", tmp_path / "short", HINTS)
