"""METER's checkpoints: every output of the official model from its weights, read by their official names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.config import FusionConfig, ModelConfig
from pipeline.models.heads import TaskClassifier
from pipeline.models.meter import Meter
from pipeline.models.packing import stacked
from pipeline.models.pairs import pair_features, twice
from pipeline.models.schedule import TokenStream, execute
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.objectives.answers import answer_loss
from pipeline.objectives.mlm import word_loss
from pipeline.tasks.compared import Ranked
from pipeline.weights.clip_family import read_meter
from pipeline.weights.loaded import Hints
from pipeline.weights.mapping import export_tensors, import_tensors
from pipeline.weights.meter import METER, load_meter, match_by_rank
from pipeline.weights.sizes import count
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("meter")
CLASSIFIERS = ("vqa", "snli", "nlvr2")
LAYERS = {
    "vision": "vit_model.visual.transformer.resblocks.",
    "text": "text_transformer.encoder.layer.",
    "fusion": "cross_modal_text_layers.",
}


def config_of(c: dict[str, Any]) -> ModelConfig:
    eps = c["layer_norm_eps"]
    assert eps["mlm_head"] == eps["fusion"], "ours has one eps for both"
    return ModelConfig(
        backbone="meter",
        vision=VisionConfig(
            height=c["image"], width_px=c["image"], patch=c["patch"], width=c["vision_width"],
            depth=c["vision_blocks"], heads=c["vision_heads"], mlp_ratio=c["mlp_ratio"], eps=eps["vision"],
            activation="quick_gelu" if "sigmoid" in c["vision_activation"] else "gelu", patch_bias=False, pre_norm=True,
        ),
        text=TextConfig(
            vocab_size=c["vocab"], width=c["text_width"], text_layers=c["text_layers"], hidden=c["text_ffn"],
            fusion_layers=c["fusion_layers"], heads=c["text_heads"], max_positions=c["max_pos"], type_rows=1,
            pad_id=c["ids"]["pad"], eps=eps["text_encoder"], dropout=0.0,
        ),
        fusion=FusionConfig(
            width=c["hidden"], heads=c["fusion_heads"], hidden=c["fusion_ffn"], eps=eps["fusion"]
        ),
    )  # fmt: skip


def classifier_of(tensors: dict[str, Tensor], eps: float) -> TaskClassifier:
    hidden, features = tensors["0.weight"].shape
    head = TaskClassifier(features, hidden, len(tensors["3.weight"]), eps).to(tensors["0.weight"])
    head.load_state_dict(tensors)
    return head


class Reference:
    """One file: the model, its heads, and its streams."""

    def __init__(self, path: Path | None) -> None:
        self.vectors: Vectors = load(path)
        c = self.vectors.sidecar["config"]
        self.model = Meter(config_of(c)).double()
        heads = load_meter(self.model, self.vectors.under("sd/")).tensors
        eps = c["layer_norm_eps"]["classifier_heads"]
        self.classifiers = {task: classifier_of(heads[task], eps) for task in CLASSIFIERS}
        self.rank = nn.Linear(2 * c["hidden"], 1).double()
        self.rank.load_state_dict(heads["rank"])
        self.mask_BL = self["in/text_masks"].bool()

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]

    def text(self, ids: str = "in/text_ids") -> TokenStream:
        return self.model.encode_text(self[ids], self.mask_BL)

    def image(self, pixels: str = "in/image_0") -> TokenStream:
        return self.model.encode_image(self[pixels])


@pytest.mark.parametrize("path", PATHS)
def test_every_output_is_checked_here(path: Path | None) -> None:
    features = {"vit_out", "text_encoder_out", "text_feats", "image_feats", "cls_feats", "itm_logits"}
    tasks = {f"{task}_logits" for task in CLASSIFIERS} | {f"loss_{task}" for task in (*CLASSIFIERS, "irtr", "mlm")}
    rest = {"mlm_text_feats", "mlm_logits", "nlvr2_cls_feats", "rank_scores"}
    assert set(load(path).under("out/")) <= features | tasks | rest


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_encoders_fusion_and_matching_are_the_originals(path: Path | None) -> None:
    reference = Reference(path)
    model, text, image = reference.model, reference.text(), reference.image()
    assert_same(image.x, reference["out/vit_out"])
    assert_same(text.x, reference["out/text_encoder_out"])
    streams = execute(model.fusion_steps, model.begin_streams(text, image))
    assert_same(streams["text"].x, reference["out/text_feats"])
    assert_same(streams["image"].x, reference["out/image_feats"])
    features_BF = model.fuse(text, image).features_BF
    assert_same(features_BF, reference["out/cls_feats"])
    assert_same(model.itm_head(features_BF), reference["out/itm_logits"])


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_masked_words_are_the_originals(path: Path | None) -> None:
    reference = Reference(path)
    fused = reference.model.fuse(reference.text("in/text_ids_mlm"), reference.image())
    assert_same(fused.text.x, reference["out/mlm_text_feats"])
    scores_BLV = reference.model.word_scores(fused.text.x)
    assert_same(scores_BLV, reference["out/mlm_logits"])
    labels_BL = reference["in/text_labels_mlm"]
    drawn_BL = labels_BL != -100
    assert_same(word_loss(scores_BLV[drawn_BL], labels_BL[drawn_BL]), reference["out/loss_mlm"])


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_answers_and_entailment_are_the_originals(path: Path | None) -> None:
    reference = Reference(path)
    features_BF = reference.model.fuse(reference.text(), reference.image()).features_BF
    answers_BA = reference.classifiers["vqa"](features_BF)
    assert_same(answers_BA, reference["out/vqa_logits"])
    assert_same(answer_loss(answers_BA, reference["in/vqa_targets"]), reference["out/loss_vqa"])
    entailed_B3 = reference.classifiers["snli"](features_BF)
    assert_same(entailed_B3, reference["out/snli_logits"])
    assert_same(F.cross_entropy(entailed_B3, reference["in/labels"]), reference["out/loss_snli"])


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_pairs_are_the_originals(path: Path | None) -> None:
    reference = Reference(path)
    first, second = reference.image(), reference.image("in/image_1")
    features = pair_features(reference.model, twice(reference.text()), stacked(first, second))
    assert_same(features, reference["out/nlvr2_cls_feats"])
    scores_B2 = reference.classifiers["nlvr2"](features)
    assert_same(scores_B2, reference["out/nlvr2_logits"])
    assert_same(F.cross_entropy(scores_B2, reference["in/answers"]), reference["out/loss_nlvr2"])


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_ranks_are_the_originals(path: Path | None) -> None:
    reference = Reference(path)
    ids_BL, image = reference["in/text_ids"], reference.image()
    candidates = [
        reference.model.fuse(reference.model.encode_text(ids, mask), image).features_BF
        for ids, mask in [(ids_BL, reference.mask_BL), (ids_BL.roll(-1, 0), reference.mask_BL.roll(-1, 0))]
    ]
    match_by_rank(reference.model, reference.rank.state_dict())
    scores_BC = torch.stack([reference.model.match_score(each) for each in candidates], 1)
    assert_same(scores_BC, reference["out/rank_scores"])
    assert_same(Ranked(scores_BC).loss(), reference["out/loss_irtr"])


@pytest.mark.parametrize("path", PATHS)
def test_entries_that_no_output_shows_have_their_names_and_values(path: Path | None) -> None:
    vectors = load(path)
    official = vectors.under("sd/")
    imported = import_tensors(official, METER)
    there_and_back = export_tensors(imported.tensors, METER).tensors
    assert not imported.unknown
    for name in vectors.sidecar["entries_no_output_depends_on"]:
        if name in imported.dropped:
            assert name.startswith(("vit_model.positional_embedding", "vit_model.ln_final", "text_transformer.pooler"))
        else:
            assert_same(there_and_back[name], official[name], 0.0)
    assert set(there_and_back) | set(imported.dropped) == set(official)


@pytest.mark.parametrize("path", PATHS)
def test_a_file_alone_says_its_sizes(path: Path | None) -> None:
    reference = Reference(path)
    c = reference.vectors.sidecar["config"]
    hints = Hints(vision_heads=c["vision_heads"], text_heads=c["text_heads"], fusion_heads=c["fusion_heads"])
    loaded = read_meter(reference.vectors.under("sd/"), hints)
    read, wanted = loaded.config, config_of(c)
    assert read == replace(wanted, text=replace(wanted.text, dropout=read.text.dropout))
    stored, rank = reference.model.state_dict(), reference.rank.state_dict()
    for name in ("weight", "bias"):  # matching's is what the file's rank_output says of a match
        stored[f"itm_head.{name}"] = torch.cat([torch.zeros_like(rank[name]), rank[name]])
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize("path", PATHS)
def test_a_file_from_before_nlvr2_begins_the_second_image_as_the_first(path: Path | None) -> None:
    reference = Reference(path)
    official = reference.vectors.under("sd/")
    types = "token_type_embeddings.weight"
    load_meter(reference.model, {**official, types: official[types][:2]})
    assert_same(reference.model.token_type_embeddings.weight, official[types][[0, 1, 1]], 0.0)


def full_size(path: Path | None) -> dict[str, Tensor]:
    assert path is not None
    return {name: torch.empty(shape, device="meta") for name, shape in json.loads(path.read_text())}


@pytest.mark.parametrize("path", files("names meter"))
def test_full_size_names_load_without_unknown_or_missing_ones(path: Path | None) -> None:
    official = full_size(path)
    loaded = read_meter(official, Hints())
    vision, text, fusion = loaded.config.vision, loaded.config.text, loaded.config.fusion
    layers = {part: count(official, prefix) for part, prefix in LAYERS.items()}
    assert (vision.depth, text.text_layers, text.fusion_layers) == (layers["vision"], layers["text"], layers["fusion"])
    widths = {part.width // 64 for part in (vision, text, fusion)}
    assert widths == {vision.heads, text.heads, fusion.heads} and fusion.hidden == 4 * fusion.width
    assert vision.patches + 1 == len(official["vit_model.visual.positional_embedding"])
    assert isinstance(loaded.model, Meter)
    heads = load_meter(loaded.model, official)
    for tensors in (heads.tensors[task] for task in CLASSIFIERS if task in heads.tensors):
        hidden, features = tensors["0.weight"].shape
        with torch.device("meta"):
            head = TaskClassifier(features, hidden, len(tensors["3.weight"]))
        assert {name: t.shape for name, t in head.state_dict().items()} == {n: t.shape for n, t in tensors.items()}
    assert sorted(heads.dropped) == [
        "text_transformer.embeddings.position_ids",
        "text_transformer.pooler.dense.bias",
        "text_transformer.pooler.dense.weight",
        "vit_model.ln_final.bias",
        "vit_model.ln_final.weight",
        "vit_model.positional_embedding",
    ]
