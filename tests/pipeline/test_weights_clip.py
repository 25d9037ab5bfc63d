"""CLIP's weights in Hugging Face's and OpenAI's names: the same outputs, and back again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from pipeline.models.clip import Clip
from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.weights.clip import OPENAI_CLIP, load_clip, to_huggingface
from pipeline.weights.mapping import export_tensors
from pipeline.weights.reading import Foreign, read_foreign

END = 19  # the last word of the vocabulary, as in CLIP's
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def theirs(dtype: torch.dtype, seed: int = 0) -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    layers: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 40, "initializer_range": 0.3}
    config = CLIPConfig(
        vision_config={**layers, "hidden_size": 24, "num_attention_heads": 3, "image_size": 32, "patch_size": 8},
        text_config={
            **layers, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": END + 1, "max_position_embeddings": 9,
            "eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": 1,
        },
        projection_dim=12, initializer_factor=5.0,
    )  # fmt: skip
    return CLIPModel(config).to(dtype).eval()


def config_of(side: int = 32, depth: int = 2) -> ModelConfig:
    return ModelConfig(
        backbone="clip",
        vision=VisionConfig(
            height=side, width_px=side, patch=8, width=24, depth=depth, heads=3, mlp_ratio=40 / 24, eps=1e-5,
            activation="quick_gelu", pre_norm=True, patch_bias=False,
        ),
        text=TextConfig(
            vocab_size=END + 1, width=16, text_layers=2, fusion_layers=0, heads=2, hidden=40, max_positions=9,
            eps=1e-5, activation="quick_gelu", type_rows=0,
        ),
        embed=12,
    )  # fmt: skip


def foreign_of(model: Any) -> Foreign:
    return Foreign(model.state_dict(), model.config.to_dict(), Path("clip"))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that end with END, then padding, and the mask of what is real."""
    lengths_B1 = torch.tensor([[9], [4], [6]])
    position_L = torch.arange(9)
    ids_BL = torch.randint(2, END - 1, (3, 9), generator=torch.Generator().manual_seed(1))
    ids_BL = ids_BL.where(position_L < lengths_B1 - 1, torch.where(position_L == lengths_B1 - 1, END, 1))
    return ids_BL, position_L < lengths_B1


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@torch.no_grad()
def test_outputs_are_hugging_faces(dtype: torch.dtype, tolerance: float) -> None:
    reference, model = theirs(dtype), Clip(config_of()).to(dtype)
    load_clip(model, foreign_of(reference))
    ids_BL, mask_BL = texts()
    pixels = torch.randn(3, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(2))
    wanted = reference(input_ids=ids_BL, attention_mask=mask_BL.long(), pixel_values=pixels)
    image, text = model.encode_image(pixels), model.encode_text(ids_BL, mask_BL)
    close = {"rtol": tolerance, "atol": tolerance}
    vision = reference.vision_model
    torch.testing.assert_close(image.x, vision.post_layernorm(wanted.vision_model_output.last_hidden_state), **close)
    torch.testing.assert_close(model.image_feature(image), wanted.image_embeds, **close)
    torch.testing.assert_close(model.text_feature(text), wanted.text_embeds, **close)
    scores = model.image_feature(image) @ model.text_feature(text).T / model.temp
    torch.testing.assert_close(scores, wanted.logits_per_image, **close)


def test_written_back_every_name_and_value_is_hugging_faces() -> None:
    reference, model = theirs(torch.float64), Clip(config_of()).double()
    load_clip(model, foreign_of(reference))
    written = to_huggingface(model)
    stored = reference.state_dict()
    assert set(written) == set(stored)
    for name, tensor in stored.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-12, atol=1e-12)
    theirs(torch.float64, seed=1).load_state_dict(written)


def test_a_saved_folder_loads_and_its_heads_are_compared(tmp_path: Path) -> None:
    theirs(torch.float32).save_pretrained(tmp_path)
    load_clip(Clip(config_of()), read_foreign(tmp_path))
    config = config_of()
    wrong = replace(config, vision=replace(config.vision, heads=4))
    with pytest.raises(UserError, match=r"model\.vision\.heads=4.*num_attention_heads=3"):
        load_clip(Clip(wrong), read_foreign(tmp_path))


@torch.no_grad()
def test_openais_names_give_the_same_model() -> None:
    torch.manual_seed(0)
    model, again = Clip(config_of()).double(), Clip(config_of()).double()
    openai = export_tensors(model.state_dict(), OPENAI_CLIP).tensors
    assert openai["visual.proj"].shape == (24, 12)
    assert openai["text_projection"].shape == (16, 12)
    assert openai["visual.class_embedding"].shape == (24,)
    assert openai["visual.transformer.resblocks.1.attn.in_proj_weight"].shape == (72, 24)
    dropped = load_clip(again, Foreign({**openai, "context_length": torch.tensor(9)}, None, Path("clip.pt")))
    assert dropped == ["context_length"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(UserError, match=r"is no CLIP"):
        load_clip(Clip(config_of()), Foreign({"conv.weight": torch.zeros(1)}, None, Path("resnet.pt")))


def test_another_resolution_resizes_positions() -> None:
    reference, model = theirs(torch.float32), Clip(config_of(side=48))
    load_clip(model, foreign_of(reference))
    pixels = torch.randn(1, 3, 48, 48)
    wanted = reference.vision_model.embeddings(pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(model.visual_encoder.norm_pre(wanted), model.visual_encoder.embed(pixels).x)
