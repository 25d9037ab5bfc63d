"""Vision towers from timm, text encoders from Hugging Face: the same outputs; what is left out is listed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from pipeline.models.albef import Albef
from pipeline.models.blip import Blip
from pipeline.models.blocks import PostNormBlock
from pipeline.models.clip import Clip
from pipeline.models.meter import Meter
from pipeline.models.schedule import execute
from pipeline.models.text import Bert, TextConfig, text_block
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.weights.reading import Foreign, read_foreign
from pipeline.weights.text import load_bert, load_text
from pipeline.weights.vision import load_vision
from tests.pipeline.small import WORDS, small_config
from tests.pipeline.weights.foreign_models import clip_config, foreign_hf, hf_clip, save_text_model, timm_vit

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = VisionConfig(height=32, width_px=32, patch=8, width=24, depth=2, heads=3)
CLIP_LIKE = replace(PLAIN, eps=1e-5, pre_norm=True, patch_bias=False)


def foreign(model: torch.nn.Module) -> Foreign:
    return Foreign(model.state_dict(), None, Path("vit.safetensors"))


@torch.no_grad()
def states(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    return tower.finish(execute(tower.steps, {"image": tower.embed(pixels)})["image"]).x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("quick", [False, True])
@torch.no_grad()
def test_a_timm_tower_gives_timms_tokens(clip: bool, quick: bool) -> None:
    model = timm_vit(clip, quick, num_classes=5)
    config = replace(CLIP_LIKE if clip else PLAIN, activation="quick_gelu" if quick else "gelu")
    tower = VisionTower(config)
    dropped = load_vision(tower, foreign(model))
    assert sorted(dropped) == ["head.bias", "head.weight"]
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(states(tower, pixels), model.forward_features(pixels), **CLOSE)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("vit_tiny_patch16_224", "gelu"),
        ("vit_base_patch16_clip_224", "gelu"),
        ("vit_base_patch16_clip_quickgelu_224", "quick_gelu"),
    ],
)
@torch.no_grad()
def test_towers_of_timms_registry_are_known(name: str, activation: Any) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=24, depth=2, num_heads=3, img_size=32, patch_size=8).eval()
    config = CLIP_LIKE if "clip" in name else PLAIN
    tower = VisionTower(replace(config, activation=activation))
    load_vision(tower, foreign(model))
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(states(tower, pixels), model.forward_features(pixels), **CLOSE)


@torch.no_grad()
def test_a_timm_tower_at_another_resolution_has_resized_positions() -> None:
    from timm.layers import resample_abs_pos_embed

    small = timm_vit(clip=False, num_classes=0)
    tower = VisionTower(replace(PLAIN, height=48, width_px=32))
    load_vision(tower, foreign(small))
    # timm antialiases unless told not to; ALBEF, BLIP and METER do not.
    table = resample_abs_pos_embed(small.pos_embed, new_size=[6, 4], antialias=False)
    large = timm_vit(clip=False, num_classes=0, img_size=(48, 32))
    large.load_state_dict({**small.state_dict(), "pos_embed": table})
    pixels = torch.randn(2, 3, 48, 32)
    torch.testing.assert_close(states(tower, pixels), large.forward_features(pixels), **CLOSE)


def test_a_tower_trained_on_the_mean_of_its_tokens_has_no_final_norm_to_give() -> None:
    tower = VisionTower(PLAIN)
    dropped = load_vision(tower, foreign(timm_vit(clip=False, num_classes=5, global_pool="avg")))
    assert sorted(dropped) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert (tower.norm.weight == 1).all()


def test_a_shallower_tower_takes_the_first_blocks() -> None:
    model = timm_vit(clip=False, num_classes=0)
    tower = VisionTower(replace(PLAIN, depth=1))
    dropped = load_vision(tower, foreign(model))
    assert len(dropped) == 12
    assert all("blocks.1." in name for name in dropped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_norm": True}, r"model\.vision\.pre_norm=True does not fit .* set it to False"),
        ({"patch_bias": False}, r"model\.vision\.patch_bias=False does not fit .* set it to True"),
        ({"depth": 3}, r"12 missing"),
        ({"width": 48}, r"wrongly shaped"),
    ],
)
def test_another_kind_of_tower_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_vision(VisionTower(replace(PLAIN, **change)), foreign(timm_vit(clip=False)))


def test_tokens_that_ours_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 unknown \(reg_token\); 1 wrongly shaped \(pos_embed"):
        load_vision(VisionTower(PLAIN), foreign(timm_vit(clip=False, reg_tokens=1, no_embed_class=False)))


@torch.no_grad()
def test_a_clip_gives_its_vision_tower() -> None:
    reference = hf_clip(torch.float32)
    tower = VisionTower(clip_config(depth=1).vision)
    dropped = load_vision(tower, foreign_hf(reference))
    assert "text_proj.weight" in dropped
    first = reference.vision_model.encoder.layers[0].layer_norm1.weight
    assert torch.equal(tower.blocks[0].norm1.weight, first)
    backbone = Clip(clip_config())
    load_vision(tower, foreign(backbone))
    assert torch.equal(tower.pos_embed, backbone.visual_encoder.pos_embed)


def text_config(kind: str, **changes: Any) -> TextConfig:
    own = {"type_rows": 2, "pad_id": None} if kind == "Bert" else {"type_rows": 1, "pad_id": 1}
    sizes = {"vocab_size": WORDS, "width": 32, "text_layers": 3, "fusion_layers": 0, "heads": 4, "max_positions": 10}
    return TextConfig(**{**sizes, **own, "dropout": 0.0, **changes})


def encoder_of(config: TextConfig) -> Bert:
    return Bert(config, [text_block(config) for _ in range(config.text_layers)])


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize("with_head", [False, True])
@torch.no_grad()
def test_a_text_encoder_gives_hugging_faces_states(kind: str, with_head: bool, tmp_path: Path) -> None:
    model = save_text_model(kind, tmp_path, with_head)
    config = text_config(kind)
    encoder = encoder_of(config)
    dropped = load_bert(encoder, config, read_foreign(tmp_path))
    assert dropped
    assert all(name.startswith(("pooler.", "cls.", "lm_head.")) for name in dropped)
    ids_BL = torch.randint(2, WORDS, (3, 8))
    mask_BL = torch.arange(8) < torch.tensor([[8], [5], [3]])
    ids_BL = ids_BL.where(mask_BL, model.config.pad_token_id)
    inner = getattr(model, kind.lower()) if with_head else model
    wanted_BLD = inner(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    ours_BLD = execute(encoder.steps("text", slice(None)), {"text": encoder.embed(ids_BL, mask_BL)})["text"].x
    torch.testing.assert_close(ours_BLD[mask_BL], wanted_BLD[mask_BL], **CLOSE)


def test_old_names_of_norms_are_known(tmp_path: Path) -> None:
    model = save_text_model("Bert", tmp_path)
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in model.state_dict().items()
    }
    config = text_config("Bert")
    encoder = encoder_of(config)
    load_bert(encoder, config, Foreign(old, None, Path("bert.bin")))
    assert torch.equal(encoder.embeddings.LayerNorm.weight, model.embeddings.LayerNorm.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 8}, r"model\.text\.heads=8.*num_attention_heads=4"),
        ({"eps": 1e-5}, r"model\.text\.eps=1e-05.*layer_norm_eps=1e-12"),
        ({"pad_id": 1}, r"model\.text\.pad_id=1.*want None"),
        ({"vocab_size": 60}, r"embeddings\.word_embeddings\.weight 50x32 where 60x32 is wanted"),
        ({"text_layers": 4}, r"missing \(encoder\.layer\.3"),
    ],
)
def test_another_text_encoder_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_text_model("Bert", tmp_path)
    config = text_config("Bert", **change)
    with pytest.raises(UserError, match=message):
        load_bert(encoder_of(config), config, read_foreign(tmp_path))


def layer_of(layers: Any, number: int) -> PostNormBlock:
    layer = layers[number]
    assert isinstance(layer, PostNormBlock)
    return layer


def test_each_backbone_begins_from_its_text_encoder(tmp_path: Path) -> None:
    bert = save_text_model("Bert", tmp_path / "bert")
    foreign_text = read_foreign(tmp_path / "bert")
    config = small_config(backbone="albef")
    albef = Albef(config)
    crossing = albef.text_encoder.bert.encoder.layer[2].crossattention.self.query.weight.clone()
    load_text(albef, foreign_text)
    third = bert.encoder.layer[2].attention.self.query.weight
    layer = layer_of(albef.text_encoder.bert.encoder.layer, 2)  # the first of two fusion layers; the file has 3 layers
    assert torch.equal(layer.attention.self.query.weight, third)
    assert torch.equal(layer.crossattention.self.query.weight, crossing)

    words = small_config(backbone="blip").text
    blip = Blip(replace(small_config(backbone="blip"), text=replace(words, vocab_size=WORDS + 2)))
    dropped = load_text(blip, foreign_text)
    assert "embeddings.token_type_embeddings.weight" in dropped
    own = layer_of(blip.text_decoder.bert.encoder.layer, 1)
    assert torch.equal(own.attention.self.query.weight, bert.encoder.layer[1].attention.self.query.weight)
    table = blip.text_encoder.embeddings.word_embeddings.weight
    assert torch.equal(table[:WORDS], bert.embeddings.word_embeddings.weight)

    roberta = save_text_model("Roberta", tmp_path / "roberta")
    meter_config = small_config(backbone="meter")
    meter = Meter(replace(meter_config, text=replace(meter_config.text, pad_id=1)))
    load_text(meter, read_foreign(tmp_path / "roberta"))
    assert torch.equal(meter.text_encoder.embeddings.word_embeddings.weight, roberta.embeddings.word_embeddings.weight)

    clip = Clip(clip_config())
    load_text(clip, foreign_hf(hf_clip(torch.float32)))
    wanted = hf_clip(torch.float32).text_model.final_layer_norm.weight
    assert torch.equal(clip.text_encoder.norm.weight, wanted)
