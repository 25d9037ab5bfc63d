"""What pre-training begins with: exports, official files, parts; mistakes are told before training."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.data.loader import LoaderConfig
from pipeline.engine import EngineConfig
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName
from pipeline.models.meter import Meter
from pipeline.pretrain import PretrainConfig, check_pretrain
from pipeline.weights.init import InitConfig, initialise
from pipeline.weights.mapping import export_tensors
from pipeline.weights.meter import METER, load_meter
from pipeline.worker import parse
from tests.pipeline.small import small_config, small_model
from tests.pipeline.weights.foreign_models import save_text_model, timm_vit

BACKBONES: list[BackboneName] = ["albef", "blip", "meter", "clip"]


def export(model: Backbone, folder: Path) -> InitConfig:
    export_weights(folder, model.state_dict(), {"kind": "backbone", "model": asdict(model.config)})
    return InitConfig(model=str(folder))


def meter_like_the_authors(seed: int) -> Meter:
    config = small_config(backbone="meter")
    torch.manual_seed(seed)
    return Meter(replace(config, vision=replace(config.vision, pre_norm=True, patch_bias=False)))


def same(ours: Backbone, theirs: Backbone) -> bool:
    stored = theirs.state_dict()
    return all(torch.equal(tensor, stored[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_export_is_a_beginning(backbone: BackboneName, tmp_path: Path) -> None:
    pretrained, model = small_model(backbone, seed=1), small_model(backbone)
    assert not same(model, pretrained)
    initialise(model, export(pretrained, tmp_path / "export"))
    assert same(model, pretrained)


def test_an_export_begins_a_model_of_another_resolution(tmp_path: Path) -> None:
    init = export(small_model("albef"), tmp_path / "export")
    config = small_config()
    large = build_model(replace(config, vision=replace(config.vision, height=48, width_px=48)))
    initialise(large, init)
    assert large.visual_encoder.pos_embed.shape[1] == 1 + 36


def test_an_export_with_other_heads_is_refused(tmp_path: Path) -> None:
    init = export(small_model("albef"), tmp_path / "export")
    config = small_config()
    other = build_model(replace(config, vision=replace(config.vision, heads=2)))
    with pytest.raises(UserError, match=r"pretrain\.init\.model=.*model\.vision\.heads=2, it was made with 4"):
        initialise(other, init)
    export_weights(tmp_path / "old", {}, {"kind": "backbone", "model": {}})
    with pytest.raises(UserError, match=r"does not tell the sizes"):
        initialise(other, InitConfig(model=str(tmp_path / "old")))
    with pytest.raises(UserError, match=r"an export of albef; set model\.backbone"):
        initialise(small_model("meter"), init)


def test_an_official_file_is_a_beginning(tmp_path: Path) -> None:
    pretrained, model = meter_like_the_authors(1), meter_like_the_authors(0)
    official = export_tensors(pretrained.state_dict(), METER).tensors
    torch.save({"state_dict": official}, tmp_path / "meter.ckpt")
    init = InitConfig(model=str(tmp_path / "meter.ckpt"))
    initialise(model, init)
    assert same(model, pretrained)
    with pytest.raises(UserError, match=r"pretrain\.init\.model=.*meter\.ckpt: model\.vision\.pre_norm=False"):
        initialise(small_model("meter"), init)


@pytest.mark.parametrize("backbone", ["albef", "blip"])
def test_momentum_copies_and_queues_are_left_out(backbone: BackboneName, tmp_path: Path) -> None:
    pretrained, model = small_model(backbone, seed=1), small_model(backbone)
    stored = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    copies = {f"vision_proj_m.{part}": stored[f"vision_proj.{part}"] for part in ("weight", "bias")}
    torch.save({"model": {**stored, **copies, "image_queue": torch.zeros(16, 4)}}, tmp_path / "file.pth")
    dropped = initialise(model, InitConfig(model=str(tmp_path / "file.pth")))
    assert set(dropped["model"]) >= {"vision_proj_m.weight", "vision_proj_m.bias", "image_queue"}
    assert same(model, pretrained)


def test_parts_come_after_the_whole(tmp_path: Path) -> None:
    bert = save_text_model("Bert", tmp_path / "bert")
    vit = timm_vit(clip=False, embed_dim=32, num_heads=4, depth=4)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    init = export(small_model("albef", seed=1), tmp_path / "export")
    model = small_model("albef")
    dropped = initialise(model, replace(init, vision=str(tmp_path / "vit.pth"), text=str(tmp_path / "bert")))
    assert torch.equal(model.visual_encoder.pos_embed, vit.pos_embed)
    words = model.text_encoder.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    assert torch.equal(words, bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.itm_head.weight, small_model("albef", seed=1).itm_head.weight)
    assert list(dropped) == ["model", "vision", "text"]


def test_a_missing_path_is_told_before_anything_is_read(tmp_path: Path) -> None:
    values = {"loop": {"samples": 4, "global_batch": 4}, "init": {"vision": str(tmp_path / "none.pth")}}
    values["pruning"] = {"method": "none"}
    loader = LoaderConfig(height=32, width=32, streams=2, max_tokens=9)
    with pytest.raises(UserError, match=r"pretrain\.init\.vision=.*none\.pth is missing"):
        check_pretrain(parse(PretrainConfig, values), small_config(), loader, EngineConfig(name="torch"), 1)


def test_wrong_shapes_name_the_key_and_the_file(tmp_path: Path) -> None:
    torch.save(timm_vit(clip=False).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"pretrain\.init\.vision=.*vit\.pth: these weights do not fit"):
        initialise(small_model("albef"), InitConfig(vision=str(tmp_path / "vit.pth")))


def test_a_fine_tuned_meter_may_lack_heads_but_no_part_of_one() -> None:
    pretrained, model = meter_like_the_authors(1), meter_like_the_authors(0)
    official = export_tensors(pretrained.state_dict(), METER).tensors
    drawn = model.itm_head.weight.clone()
    load_meter(model, {name: t for name, t in official.items() if not name.startswith(("itm_score", "mlm_score"))})
    assert torch.equal(model.itm_head.weight, drawn)
    with pytest.raises(UserError, match=r"1 missing \(itm_head\.bias\)"):
        load_meter(model, {name: t for name, t in official.items() if name != "itm_score.fc.bias"})


def test_paths_are_absolute_for_workers_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert InitConfig(vision="weights/vit.pth").paths == {"vision": tmp_path / "weights/vit.pth"}
