"""BLIP out of transformers and back into it: the same outputs both ways, on random weights."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.generation import BeamConfig, generate
from pipeline.models.blip import Blip
from pipeline.models.blip_tasks import BlipAnswering, BlipCaptioner, BlipKind, BlipRetrieval
from pipeline.models.config import ModelConfig
from pipeline.models.vision import VisionConfig
from pipeline.weights.blip_hf import CLASSES, read_blip_hf, to_blip_hf
from pipeline.weights.loaded import Hints, Loaded
from tests.pipeline.small import small_config, small_model

BATCH, LENGTH, WORDS = 3, 7, 50
WIDTHS = {"blip_retrieval": 24, "blip_vqa": 32, "blip_caption": 24}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


def theirs(kind: str, dtype: torch.dtype, vision_eps: float = 1e-6) -> transformers.PreTrainedModel:
    text = {
        "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 12, "bos_token_id": WORDS - 2,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTHS[kind], "intermediate_size": 4 * WIDTHS[kind], "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "layer_norm_eps": vision_eps,
    }  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[kind])(config)  # type: ignore[index]
    with torch.no_grad():  # their own beginning is too near to nothing to show a difference
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    ids = torch.randint(3, WORDS - 2, (BATCH, LENGTH), generator=generator)
    return pixels, ids, torch.ones_like(ids)


def ours(model: transformers.PreTrainedModel) -> Loaded:
    return read_blip_hf(model.state_dict(), model.config.to_dict(), Hints())


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCES[wanted.dtype])


def with_first(ids: Tensor, first: int) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], 1)


def compare_retrieval(there: transformers.PreTrainedModel, here: torch.nn.Module, dtype: torch.dtype) -> None:
    assert isinstance(here, BlipRetrieval | Blip)
    pixels, ids, mask = inputs(dtype)
    mask[1, 5:] = 0  # self-attention keeps the padding mask there
    image, text = here.encode_image(pixels), here.encode_text(ids, mask)
    got = there(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=False)
    same(image.x, got.last_hidden_state)
    same(text.x, got.question_embeds)
    same(here.image_feature(image) @ here.text_feature(text).T, got.itm_score)
    got = there(input_ids=with_first(ids, WORDS - 1), pixel_values=pixels, attention_mask=mask)
    fused = here.fuse(here.begin_fusion(text, ids, mask), image)
    same(fused.text.x, got.question_embeds)
    same(here.itm_head(fused.features_BF), got.itm_score)


def compare_vqa(there: transformers.PreTrainedModel, here: torch.nn.Module, dtype: torch.dtype) -> None:
    assert isinstance(here, BlipAnswering)
    pixels, ids, mask = inputs(dtype)  # unpadded: their cross-attention has lost its padding mask
    image = here.encode_image(pixels)
    question = here.ask(None, ids, mask, image)
    asked = with_first(ids, WORDS - 1)
    same(
        question.x,
        there.text_encoder(asked, attention_mask=mask, encoder_hidden_states=image.x).last_hidden_state,
    )
    answers = with_first(ids.flip(1), WORDS - 2)[:, :4]
    scores = here.answer(answers, torch.ones_like(answers), question, torch.arange(BATCH))
    same(scores, there.text_decoder(answers, encoder_hidden_states=question.x).logits[:, :-1].flatten(0, 1))
    got = there(input_ids=asked, pixel_values=pixels, attention_mask=mask, labels=answers)
    same(F.cross_entropy(scores, answers[:, 1:].flatten()), got.loss)


def compare_caption(there: transformers.PreTrainedModel, here: torch.nn.Module, dtype: torch.dtype) -> None:
    assert isinstance(here, BlipCaptioner)
    pixels, ids, mask = inputs(dtype)
    ids = with_first(ids, WORDS - 2)
    image = here.encode_image(pixels)
    got = there(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=ids)
    scores = here.word_scores(here.fuse(here.embed_text(ids, mask), image).text.x)
    same(scores, got.logits)
    # No text ends early: their end token lies outside this vocabulary.
    prompt = with_first(ids[:, :3], WORDS - 2)[:, :2]  # theirs drops the last token, thought to end the prompt
    length = prompt.shape[1] + 5
    for beams, penalty in ((1, 1.0), (3, 1.0), (4, 0.0)):
        options = {"num_beams": beams, "length_penalty": penalty, "do_sample": False}
        found = there.generate(pixel_values=pixels, input_ids=ids[:, :3], max_new_tokens=5, **options)
        search = BeamConfig(beams=beams, min_length=1, max_length=length, length_penalty=penalty)
        assert torch.equal(generate(here, prompt, image, search, None), found)


@pytest.mark.parametrize(("beams", "penalty", "least"), [(1, 1.0, 1), (3, 1.0, 5), (3, 0.0, 1), (2, 2.0, 4)])
def test_captions_are_those_of_transformers_generate(beams: int, penalty: float, least: int) -> None:
    """Beam search with texts that end where they like, at the length they may first, or at the last."""
    there = theirs("blip_caption", torch.float64)
    pixels, model = inputs(torch.float64)[0], ours(there).model
    assert isinstance(model, BlipCaptioner)
    with torch.no_grad():
        image = model.encode_image(pixels)
    begin = torch.full((BATCH, 2), WORDS - 2)  # theirs drops the second
    search = BeamConfig(beams=beams, min_length=least, max_length=12, length_penalty=penalty)
    endless = generate(model, begin[:1, :1], image, search, None)
    lengths = set[int]()
    for end in endless[:, 1:].unique().tolist():
        there.config.text_config.sep_token_id = there.config.text_config.pad_token_id = end
        options = {"num_beams": beams, "length_penalty": penalty, "min_length": least, "max_length": 12}
        wanted = there.generate(pixel_values=pixels, input_ids=begin, do_sample=False, **options)
        found = generate(model, begin[:1, :1], image, search, end)
        assert torch.equal(found[:, : wanted.shape[1]], wanted)
        assert (found[:, wanted.shape[1] :] == end).all()
        lengths |= set((found != end).sum(1).tolist())
    assert len(lengths) > 1


COMPARE = {"blip_retrieval": compare_retrieval, "blip_vqa": compare_vqa, "blip_caption": compare_caption}


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("kind", list(CLASSES))
def test_ours_is_theirs(kind: BlipKind, dtype: torch.dtype) -> None:
    there = theirs(kind, dtype)
    loaded = ours(there)
    assert loaded.kind == kind
    with torch.no_grad():
        COMPARE[kind](there, loaded.model, dtype)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_out_again_and_loaded_by_transformers_strictly(kind: BlipKind, tmp_path: Path) -> None:
    there = theirs(kind, torch.float64)
    loaded = ours(there)
    written = to_blip_hf(kind, loaded.config, loaded.model)
    assert written.left_out == (("temp",) if kind == "blip_retrieval" else ())
    tensors, config = written.tensors, written.config
    assert set(tensors) == set(there.state_dict())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in there.state_dict().items())
    again = getattr(transformers, CLASSES[kind])(transformers.BlipConfig(**config)).double().eval()
    again.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        COMPARE[kind](again, loaded.model, torch.float64)


def test_the_encoders_of_a_pretrained_model_become_their_retrieval_model() -> None:
    model = small_model("blip").double().eval()
    config = small_config(backbone="blip")
    written = to_blip_hf("blip", config, model)
    assert all(name == "temp" or name.startswith("text_decoder.") for name in written.left_out)
    there = transformers.BlipForImageTextRetrieval(transformers.BlipConfig(**written.config)).double().eval()
    there.load_state_dict(written.tensors, strict=True)
    pixels = inputs(torch.float64)[0]
    with torch.no_grad():
        compare_retrieval(there, model, torch.float64)
        same(model.encode_image(pixels).x, there.vision_model(pixels).last_hidden_state)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_their_own_files_can_be_read(kind: BlipKind, tmp_path: Path) -> None:
    """What they save leaves out tied tensors."""
    there = theirs(kind, torch.float32)
    there.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    loaded = read_blip_hf(stored, json.loads((tmp_path / "config.json").read_text()), Hints())
    with torch.no_grad():
        COMPARE[kind](there, loaded.model, torch.float32)


def test_their_default_epsilon_is_kept_and_told() -> None:
    there = theirs("blip_caption", torch.float64, vision_eps=1e-5)
    loaded = ours(there)
    assert loaded.config.vision.eps == 1e-5
    with torch.no_grad():
        COMPARE["blip_caption"](there, loaded.model, torch.float64)


def test_what_cannot_be_read_or_held_is_said() -> None:
    there = theirs("blip_vqa", torch.float32)
    tensors, config = there.state_dict(), there.config.to_dict()
    with pytest.raises(UserError, match="model_type='bert'"):
        read_blip_hf(tensors, {**config, "model_type": "bert"}, Hints())
    with pytest.raises(UserError, match="hidden_act='relu'"):
        read_blip_hf(tensors, {**config, "text_config": {"hidden_act": "relu"}}, Hints())
    with pytest.raises(UserError, match=r"1 unknown \(pooler.weight\)"):
        read_blip_hf({**tensors, "pooler.weight": torch.zeros(1)}, config, Hints())
    short = {name: t for name, t in tensors.items() if name != "vision_model.post_layernorm.bias"}
    with pytest.raises(UserError, match=r"1 missing \(visual_encoder.norm.bias\)"):
        read_blip_hf(short, config, Hints())
    vision = VisionConfig(height=32, width_px=32, patch=8, width=24, depth=1, heads=2)
    sizes = ModelConfig(backbone="blip", vision=vision, text=small_config(4, "blip").text)
    with pytest.raises(UserError, match="only equal widths"):
        to_blip_hf("blip_vqa", sizes, BlipAnswering(sizes))
    with pytest.raises(UserError, match="no class for blip_nlvr"):
        to_blip_hf("blip_nlvr", small_config(4, "blip"), torch.nn.Identity())
