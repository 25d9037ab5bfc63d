"""Tiny official checkpoints of ALBEF and BLIP, read by name: every stored output, in float64; and full-size names."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.generation import BeamConfig, generate
from pipeline.models.albef import Albef
from pipeline.models.answering import decode
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip, GroundedBlip
from pipeline.models.blip_tasks import BlipAnswering, BlipCaptioner, BlipPair, BlipRetrieval
from pipeline.models.pairs import fuse_both
from pipeline.models.schedule import InBlock, Step, Streams, TokenStream
from pipeline.objectives.itc import FeatureQueue, SameImage, contrast, similarity
from pipeline.objectives.lm import caption_loss, next_words
from pipeline.objectives.mlm import word_loss
from pipeline.objectives.momentum import MomentumTower
from pipeline.tasks.answering import answer_losses, answering_loss, rank
from pipeline.weights.albef import ALBEF, read_albef
from pipeline.weights.blip import BLIP, PAIR_FROM_SINGLE, read_blip
from pipeline.weights.loaded import Hints, Loaded
from pipeline.weights.mapping import export_tensors, fill, import_tensors
from tests.oracles.vectors import Vectors, files, load

KINDS = {
    "albef": files("albef"),
    "pretrain": files("blip_pretrain"),
    "retrieval": files("blip_retrieval"),
    "vqa": files("blip_vqa"),
    "caption": files("blip_caption"),
    "nlvr": files("blip_nlvr"),
}
EVERY = [path for paths in KINDS.values() for path in paths]
NAMES = files("names albef", "names blip")


def read(tensors: Mapping[str, Tensor], albef: bool, hints: Hints) -> Loaded:
    return (read_albef if albef else read_blip)(tensors, hints, keep_momentum=True)


def loaded_of(vectors: Vectors) -> Loaded:
    sizes = vectors.sidecar["config"]
    hints = Hints(vision_heads=sizes["vision_heads"], text_heads=sizes["text_heads"])
    return read(vectors.under("sd/"), "fusion_layer" in sizes, hints)


def check(vectors: Vectors, outputs: Mapping[str, Tensor]) -> None:
    """All that is stored, and nothing else, to 1e-9 absolute."""
    stored = vectors.under("out/")
    assert set(outputs) == set(stored)
    for name, wanted in stored.items():
        torch.testing.assert_close(outputs[name].detach(), wanted, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def everything_under_its_own_name(loaded: Loaded) -> dict[str, Tensor]:
    """What was read, by the names of the file."""
    state = dict(loaded.model.state_dict())
    state |= {f"{part}_m.{rest}": t for part, rest, t in _split(loaded.momentum)}
    state |= {f"{name}_queue": loaded.queue[name] for name in ("image", "text") if name in loaded.queue}
    return state


def _split(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        yield part, rest, tensor


@pytest.mark.parametrize("path", EVERY)
def test_every_entry_is_read(path: Path | None) -> None:
    vectors = load(path)
    loaded = loaded_of(vectors)
    ours = everything_under_its_own_name(loaded)
    tied = [set(names) for names in vectors.sidecar["tied_entries"]]
    for name, wanted in vectors.under("sd/").items():
        if name.endswith("position_ids") or name in ("queue_ptr", "ptr_queue", "idx_queue"):
            continue
        twins = next((names for names in tied if name in names), {name})
        found = [ours[twin] for twin in twins if twin in ours]
        assert found, f"{name} was not read"
        for tensor in found:
            assert tensor.shape == wanted.shape
            assert torch.equal(tensor, wanted), name
    names = set(vectors.under("sd/"))
    assert all(name in names for name in vectors.sidecar["entries_no_output_depends_on"])
    assert all(name.endswith("position_ids") for name in loaded.dropped)
    if loaded.queue:
        pointer = "queue_ptr" if "sd/queue_ptr" in vectors else "ptr_queue"
        assert int(loaded.queue["next"]) == int(vectors[f"sd/{pointer}"])
    if "sd/idx_queue" in vectors:
        assert torch.equal(loaded.queue["ids"], vectors["sd/idx_queue"].reshape(-1))


@pytest.mark.parametrize("path", EVERY)
def test_names_go_back_as_they_came(path: Path | None) -> None:
    vectors = load(path)
    stored = vectors.under("sd/")
    name_map = ALBEF if "fusion_layer" in vectors.sidecar["config"] else BLIP
    back = export_tensors(loaded_of(vectors).model.state_dict(), name_map)
    assert not back.unknown
    wanted = {n for n in stored if "_m." not in n and "queue" not in n and not n.endswith("position_ids")}
    assert set(back.tensors) == wanted
    assert all(torch.equal(tensor, stored[name]) for name, tensor in back.tensors.items())


def queue_of(loaded: Loaded) -> FeatureQueue:
    queue = FeatureQueue(1, 1, torch.Generator(), torch.device("cpu"))
    queue.image_EQ, queue.text_EQ = loaded.queue["image"], loaded.queue["text"]
    return queue


def teacher_of(model: Backbone, loaded: Loaded) -> Backbone:
    tower = MomentumTower(model)
    arrived = tower.model.load_state_dict(dict(loaded.momentum), strict=False)
    # The temperature is the online model's.
    assert arrived.missing_keys == ["temp"] and not arrived.unexpected_keys
    return tower.model


def shifted(stream: TokenStream) -> TokenStream:
    """Row b is row (b + 1) mod B."""
    return stream.with_x(stream.x.roll(-1, 0))


def contrast_outputs(vectors: Vectors, loaded: Loaded, model: Backbone, teacher: Backbone) -> dict[str, Tensor]:
    """What ALBEF and BLIP's pre-training and retrieval share."""
    ids, mask = vectors["in/input_ids"], vectors["in/attention_mask"]
    image, text = model.encode_image(vectors["in/image"]), model.encode_text(ids, mask)
    features = model.image_feature(image), model.text_feature(text)
    features_m = (
        teacher.image_feature(teacher.encode_image(vectors["in/image"])),
        teacher.text_feature(teacher.encode_text(ids, mask)),
    )
    same = SameImage.of(vectors["in/idx"], loaded.queue["ids"]) if "in/idx" in vectors else None
    queue = queue_of(loaded)
    alpha = float(vectors["in/alpha"])
    contrasted = contrast(*features, *features_m, queue, model.temp, alpha, same, chunk=1)
    image_EQ, text_EQ = queue.keys()
    similar = {
        "sim_i2t": features[0] @ torch.cat([features_m[1].T, text_EQ], 1) / model.temp,
        "sim_t2i": features[1] @ torch.cat([features_m[0].T, image_EQ], 1) / model.temp,
    }
    found = similarity(features[0], features_m[1], model.temp)
    torch.testing.assert_close(found, similar["sim_i2t"][:, : len(ids)])
    fused = model.fuse(model.begin_fusion(text, ids, mask), image)
    mismatched = model.fuse(model.begin_fusion(text, ids, mask), shifted(image))
    return {
        "image_embeds": image.x,
        "text_embeds": text.x,
        "image_feat": features[0],
        "text_feat": features[1],
        "image_feat_m": features_m[0],
        "text_feat_m": features_m[1],
        **similar,
        "loss_ita": contrasted,
        "fused": fused.text.x,
        "itm_logits": model.itm_head(fused.features_BF),
        "itm_logits_mismatched": model.itm_head(mismatched.features_BF),
    }


def words_of(model: Backbone, vectors: Vectors) -> Tensor:
    """ALBEF's word scores of the masked text."""
    ids, mask = vectors["in/mlm_input_ids"], vectors["in/attention_mask"]
    text = model.encode_text(ids, mask)
    return model.word_scores(model.fuse(text, model.encode_image(vectors["in/image"])).text.x)


@pytest.mark.parametrize("path", KINDS["albef"])
def test_albef(path: Path | None) -> None:
    vectors = load(path)
    loaded = loaded_of(vectors)
    model = loaded.model
    assert isinstance(model, Albef)
    teacher = teacher_of(model, loaded)
    outputs = contrast_outputs(vectors, loaded, model, teacher)
    outputs["fused_embeds"] = outputs.pop("fused")
    scores, scores_m = words_of(model, vectors), words_of(teacher, vectors)
    told = vectors["in/mlm_labels"] != -100
    outputs |= {
        "mlm_logits": scores,
        "mlm_logits_m": scores_m,
        "loss_mlm": word_loss(scores[told], vectors["in/mlm_labels"][told], scores_m[told], float(vectors["in/alpha"])),
    }
    check(vectors, outputs)


def matching_outputs(vectors: Vectors, loaded: Loaded, model: GroundedBlip) -> dict[str, Tensor]:
    outputs = contrast_outputs(vectors, loaded, model, teacher_of(model, loaded))
    outputs["multimodal_embeds"] = outputs.pop("fused")
    unchanged = model.embed_text(vectors["in/input_ids"], vectors["in/attention_mask"])
    fused = model.fuse(unchanged, model.encode_image(vectors["in/image"]))
    return {**outputs, "itm_logits_cls_first": model.itm_head(fused.features_BF)}


def told_loss(scores_BLV: Tensor, ids_BL: Tensor, mask_BL: Tensor, prompt: int = 0) -> Tensor:
    told = next_words(mask_BL, prompt)
    return caption_loss(scores_BLV[told], ids_BL[told.roll(1, 1)])


@pytest.mark.parametrize("path", KINDS["pretrain"])
def test_blip_pretraining(path: Path | None) -> None:
    vectors = load(path)
    loaded = loaded_of(vectors)
    model = loaded.model
    assert isinstance(model, Blip)
    outputs = matching_outputs(vectors, loaded, model)
    ids, mask = vectors["in/input_ids"], vectors["in/attention_mask"]
    scores = model.word_scores(model.decode(ids, mask, model.encode_image(vectors["in/image"])))
    check(vectors, {**outputs, "lm_logits": scores, "loss_lm": told_loss(scores, ids, mask)})


@pytest.mark.parametrize("path", KINDS["retrieval"])
def test_blip_retrieval(path: Path | None) -> None:
    vectors = load(path)
    loaded = loaded_of(vectors)
    assert isinstance(loaded.model, BlipRetrieval)
    check(vectors, matching_outputs(vectors, loaded, loaded.model))


@pytest.mark.parametrize("path", KINDS["vqa"])
def test_blip_question_answering(path: Path | None) -> None:
    vectors = load(path)
    model = loaded_of(vectors).model
    assert isinstance(model, BlipAnswering)
    image = model.encode_image(vectors["in/image"])
    question = model.ask(None, vectors["in/question_ids"], vectors["in/question_mask"], image)
    ids, mask = vectors["in/answer_ids"], vectors["in/answer_mask"]
    rows = torch.arange(len(question.x)).repeat_interleave(vectors["in/answers_per_question"])
    losses = answer_losses(model, ids, mask, question, rows)
    ranking = rank(
        model, vectors["in/candidate_ids"], vectors["in/candidate_mask"], question, int(vectors["in/k_test"])
    )
    states = decode(model.text_decoder, model.begin_answer(ids), mask, replace(question, rows=rows))
    logits = model.text_decoder.word_scores(states.x)  # also where no word is to be told
    torch.testing.assert_close(model.answer(ids, mask, question, rows), logits[next_words(mask)], rtol=0, atol=1e-9)
    outputs = {
        "image_embeds": image.x,
        "question_states": question.x,
        "answer_logits": logits,
        "answer_losses": losses,
        "loss": answering_loss(losses, vectors["in/answer_weights"], len(question.x)),
        "first_token_logits": model.first_words(question, 0),  # [DEC] takes the place of what begins them
        "rank_topk": ranking.kept_BK,
        "rank_scores": ranking.scores_BK,
        "rank_best": ranking.best_B,
    }
    check(vectors, outputs)


@pytest.mark.parametrize("path", KINDS["caption"])
def test_blip_captioning(path: Path | None) -> None:
    vectors = load(path)
    model = loaded_of(vectors).model
    assert isinstance(model, BlipCaptioner)
    image = model.encode_image(vectors["in/image"])
    ids, mask = vectors["in/input_ids"], vectors["in/attention_mask"]
    states = model.fuse(model.embed_text(ids, mask), image).text.x
    scores = model.word_scores(states)
    prompt = vectors["in/prompt_ids"].expand(len(image.x), -1)
    first = model.fuse(model.embed_text(prompt, torch.ones_like(prompt)), image).text.x[:, -1]
    greedy = BeamConfig(beams=1, min_length=1, max_length=vectors["out/greedy_ids"].shape[1])
    outputs = {
        "image_embeds": image.x,
        "decoder_hidden": states,
        "lm_logits": scores,
        "loss_lm": told_loss(scores, ids, mask, int(vectors["in/prompt_length"])),
        "greedy_first_logits": model.word_scores(first),
        "greedy_ids": generate(model, vectors["in/prompt_ids"], image, greedy, None),
    }
    check(vectors, outputs)


class Look:
    """Keeps the text stream before each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        self.seen.append(streams["text"].x)
        return streams, {}


@pytest.mark.parametrize("path", KINDS["nlvr"])
def test_blip_pairs_of_images(path: Path | None) -> None:
    vectors = load(path)
    model = loaded_of(vectors).model
    assert isinstance(model, BlipPair)
    images = model.encode_image(vectors["in/image"])
    first, second = (images.with_x(x) for x in images.x.chunk(2))
    ids, mask = vectors["in/input_ids"], vectors["in/attention_mask"]
    text = model.begin_fusion(model.embed_text(ids, mask), ids, mask)
    look = Look()
    fused = fuse_both(model, text, first, second, [look])
    scores = model.cls_head(fused.features_BF)
    outputs = {f"hidden_{layer}": x for layer, x in enumerate([*look.seen, fused.text.x])}
    check(
        vectors,
        {**outputs, "image_embeds": images.x, "logits": scores, "loss": F.cross_entropy(scores, vectors["in/targets"])},
    )


def meta_of(path: Path | None) -> dict[str, Tensor]:
    assert path is not None, "the lists of names are missing; CI must have them"
    return {name: torch.empty(shape, device="meta") for name, shape in json.loads(path.read_text())}


@pytest.mark.parametrize("path", NAMES)
def test_full_size_names_are_all_known(path: Path | None) -> None:
    tensors = meta_of(path)
    loaded = read(tensors, any("text_encoder.bert." in name for name in tensors), Hints())
    assert all(parameter.is_meta for parameter in loaded.model.parameters())
    assert all(name.endswith("position_ids") for name in loaded.dropped)
    sizes = loaded.config
    assert sizes.vision.heads == sizes.vision.width // 64
    assert sizes.vision.patches + 1 == tensors["visual_encoder.pos_embed"].shape[1]
    back = export_tensors(loaded.model.state_dict(), ALBEF if sizes.backbone == "albef" else BLIP)
    assert not back.unknown
    assert all(tensor.shape == tensors[name].shape for name, tensor in back.tensors.items())


@pytest.mark.parametrize("path", NAMES)
def test_momentum_copies_and_queues_are_optional(path: Path | None) -> None:
    tensors = meta_of(path)
    without = {name: t for name, t in tensors.items() if "_m." not in name and "queue" not in name}
    albef = any("text_encoder.bert." in name for name in tensors)
    loaded = read(without, albef, Hints())
    assert not loaded.momentum
    assert not loaded.queue
    dropped = (read_albef if albef else read_blip)(tensors, Hints()).dropped
    assert set(tensors) - set(without) <= set(dropped)


@pytest.mark.parametrize("path", NAMES)
def test_another_resolution_and_wrong_names(path: Path | None) -> None:
    tensors = meta_of(path)
    albef = any("text_encoder.bert." in name for name in tensors)
    patch = tensors["visual_encoder.patch_embed.proj.weight"].shape[-1]
    loaded = read(tensors, albef, Hints(image_size=10 * patch))
    assert loaded.config.vision.grid == (10, 10)
    assert loaded.model.state_dict()["visual_encoder.pos_embed"].shape[1] == 101
    norm = "visual_encoder.norm.weight"
    fewer = {name: t for name, t in tensors.items() if name != norm}
    with pytest.raises(UserError, match=r"1 missing \(visual_encoder.norm.weight\)"):
        read(fewer, albef, Hints())
    with pytest.raises(UserError, match=r"1 unknown \(odd\)"):
        read({**tensors, "odd": tensors[norm]}, albef, Hints())


@pytest.mark.parametrize("path", KINDS["pretrain"] + KINDS["retrieval"])
def test_a_model_for_pairs_begins_with_one_images_weights(path: Path | None) -> None:
    vectors = load(path)
    loaded = loaded_of(vectors)
    pair = BlipPair(loaded.config).double()
    imported = import_tensors(loaded.model.state_dict(), PAIR_FROM_SINGLE)
    assert not imported.unknown
    merging = [name for name in pair.state_dict() if ".merge_layer." in name]
    fill(pair, imported.tensors, ("cls_head.", *merging))
    attention = "encoder.layer.0.crossattention.self"
    single, twin = loaded.model.state_dict(), pair.state_dict()
    for number in (0, 1):
        key = f"text_encoder.{attention}{number}.key.weight"
        assert torch.equal(twin[key], single[f"text_encoder.{attention}.key.weight"])


@pytest.mark.parametrize("path", KINDS["pretrain"])
def test_entries_that_are_one_tensor_must_agree(path: Path | None) -> None:
    vectors = load(path)
    sizes = vectors.sidecar["config"]
    hints = Hints(vision_heads=sizes["vision_heads"], text_heads=sizes["text_heads"])
    for names in vectors.sidecar["tied_entries"]:
        tensors = vectors.under("sd/")
        tensors[names[-1]] = tensors[names[-1]] + 1
        with pytest.raises(UserError, match="differ"):
            read(tensors, False, hints)
