"""Official fine-tuned weights, imported and evaluated by the task that they were fine-tuned for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.evaluation.classes import judged
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.models.blip_tasks import FIRST_MERGING_LAYER, BlipPair
from pipeline.models.pairs import fuse_both
from pipeline.process import Process
from pipeline.tasks.classification import ClassificationModel
from pipeline.weights.blip import BLIP
from pipeline.weights.folders import import_weights
from pipeline.weights.loaded import Hints
from pipeline.weights.mapping import export_tensors
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
    write_published(name, folder / "raw", {"dev": 6}, 32, 0)
    prepare(SourceConfig(name=name, root=str(folder / "raw"), shard_samples=5), folder / "data", workers=1)
    return folder / "data" / "dev"


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
    assert isinstance(opened, ClassificationModel)
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
