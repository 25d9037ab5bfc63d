"""CLIP's weights in Hugging Face's and OpenAI's names: the same outputs, and back again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from pipeline.models.clip import Clip
from pipeline.weights.clip import OPENAI_CLIP, load_clip, to_huggingface
from pipeline.weights.clip_family import read_clip
from pipeline.weights.loaded import Hints
from pipeline.weights.mapping import export_tensors
from pipeline.weights.reading import Foreign, read_foreign
from tests.pipeline.weights.foreign_models import END, clip_config, foreign_hf, hf_clip

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


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
    reference, model = hf_clip(dtype), Clip(clip_config()).to(dtype)
    load_clip(model, foreign_hf(reference))
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
    reference, model = hf_clip(torch.float64), Clip(clip_config()).double()
    load_clip(model, foreign_hf(reference))
    written = to_huggingface(model)
    stored = reference.state_dict()
    assert set(written) == set(stored)
    for name, tensor in stored.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-12, atol=1e-12)
    hf_clip(torch.float64, seed=1).load_state_dict(written)


def test_a_saved_folder_loads_and_its_heads_are_compared(tmp_path: Path) -> None:
    hf_clip(torch.float32).save_pretrained(tmp_path)
    load_clip(Clip(clip_config()), read_foreign(tmp_path))
    config = clip_config()
    wrong = replace(config, vision=replace(config.vision, heads=4))
    with pytest.raises(UserError, match=r"model\.vision\.heads=4.*num_attention_heads=3"):
        load_clip(Clip(wrong), read_foreign(tmp_path))


@torch.no_grad()
def test_openais_names_give_the_same_model() -> None:
    torch.manual_seed(0)
    model, again = Clip(clip_config()).double(), Clip(clip_config()).double()
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
        load_clip(Clip(clip_config()), Foreign({"conv.weight": torch.zeros(1)}, None, Path("resnet.pt")))


def test_another_resolution_resizes_positions() -> None:
    reference, model = hf_clip(torch.float32), Clip(clip_config(side=48))
    load_clip(model, foreign_hf(reference))
    pixels = torch.randn(1, 3, 48, 48)
    wanted = reference.vision_model.embeddings(pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(model.visual_encoder.norm_pre(wanted), model.visual_encoder.embed(pixels).x)


@torch.no_grad()
def test_a_file_alone_says_its_sizes(tmp_path: Path) -> None:
    hf_clip(torch.float32).save_pretrained(tmp_path)
    foreign = read_foreign(tmp_path)
    read = read_clip(foreign, Hints())
    assert read.config == replace(clip_config(), text=replace(clip_config().text, dropout=read.config.text.dropout))
    model = Clip(clip_config())
    load_clip(model, foreign)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.model.state_dict().items())
    with pytest.raises(UserError, match=r"give --text-heads"):
        read_clip(replace(foreign, config=None), Hints(vision_heads=3))
