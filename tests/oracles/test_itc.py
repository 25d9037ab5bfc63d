"""Whole pre-training steps of ALBEF and of ELIP on ALBEF against the authors' own, in float64."""

from pathlib import Path

import pytest
import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.models.albef import Albef
from pipeline.models.config import TEMPERATURE_LIMITS, ModelConfig
from pipeline.models.schedule import TokenStream
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.itc import FeatureQueue, contrast, similarity
from pipeline.objectives.itm import Negatives, matching_loss, negative_weights
from pipeline.objectives.mlm import MaskedWords, Vocabulary, word_loss
from pipeline.objectives.momentum import averaged_parameters
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.selection import Selection
from pipeline.tasks.online import Draws
from pipeline.tasks.pretraining import Pretraining
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("itc")
NAMES = {"itc": "loss_ita", "itm": "loss_itm", "mlm": "loss_mlm"}
TOLERANCE = 1e-9


def task_of(vectors: Vectors) -> Pretraining:
    c, weights = vectors.constants, vectors.under("param/")
    vision = VisionConfig(
        height=c["img"], width_px=c["img"], patch=weights["visual_encoder.patch_embed.proj.weight"].shape[-1],
        width=c["D"], depth=c["vit_depth"], heads=c["H"], eps=c["vit_norm_eps"],
    )  # fmt: skip
    text = TextConfig(
        vocab_size=c["V"], width=c["Dt"], text_layers=c["fusion"], fusion_layers=c["bert_layers"] - c["fusion"],
        heads=c["Ht"], dropout=0.0, eps=c["bert_norm_eps"],
        max_positions=len(weights["text_encoder.bert.embeddings.position_embeddings.weight"]),
    )  # fmt: skip
    model = Albef(ModelConfig(vision=vision, text=text, embed=c["E"])).double()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if "_m." not in name})
    objectives = ObjectiveConfig(queue=c["Q"], momentum=c["mom"], alpha=0.4, alpha_ramp=0.0)
    words = Vocabulary(mask=4, size=c["V"])
    task = Pretraining(model, objectives, pruning_of(vectors), words, lambda pixels: pixels, torch.Generator())
    assert task.memory is not None
    begun = {official_to_ours(name): tensor for name, tensor in weights.items() if "_m." in name}
    arrived = task.memory.teacher.model.load_state_dict(begun, strict=False)
    assert not arrived.unexpected_keys
    task.memory.queue.image_EQ = vectors["state/image_queue"].clone()
    task.memory.queue.text_EQ = vectors["state/text_queue"].clone()
    return task


def official_to_ours(name: str) -> str:
    """``vision_proj_m.weight`` of the file is our teacher's ``vision_proj.weight``."""
    part, rest = name.split(".", 1)
    return f"{part.removesuffix('_m')}.{rest}"


def pruning_of(vectors: Vectors) -> PruningConfig:
    prune = vectors.constants.get("prune")
    if not prune:
        return PruningConfig(method="none")
    begins = prune["begin_layer"]
    depths = tuple(b - a for a, b in zip([0, *begins], [*begins, vectors.constants["vit_depth"]], strict=True))
    return PruningConfig(elip=ElipConfig(guidance="stage", depths=depths, ratios=tuple(prune["keep_ratio"])))


def batch_of(vectors: Vectors, step: str) -> ImageTextBatch:
    ids = vectors[step + "input_ids"]
    names = [str(row) for row in range(len(ids))]
    return ImageTextBatch(
        pixels=vectors[step + "pixels"], token_ids=ids, token_mask=vectors[step + "attention_mask"].bool(),
        labels=torch.full((len(ids),), -1), sample_ids=torch.arange(len(ids)),
        draw_seeds=torch.arange(len(ids)),
        texts=names, captions=[names] * len(ids), keys=names, groups=names, clusters=names, skipped=[],
    )  # fmt: skip


def draws_of(vectors: Vectors, step: str) -> Draws:
    labels = vectors[step + "mlm_labels"]
    drawn = labels != -100
    words = MaskedWords(vectors[step + "mlm_input_ids"], drawn, labels[drawn])
    negatives = Negatives(vectors[step + "neg_image_for_text"], vectors[step + "neg_text_for_image"])
    return Draws(torch.zeros(len(labels), 3), words, negatives)


@pytest.mark.parametrize("path", PATHS)
def test_whole_steps_are_the_references(path: Path | None) -> None:
    vectors = load(path)
    task = task_of(vectors)
    seen = looked_at(task)
    for number in range(vectors.constants["steps"]):
        step = f"step{number}/"
        task.model.temp.data.clamp_(*TEMPERATURE_LIMITS)  # the reference does so here, ours after each update
        task.before_update(1.0)
        batch, alpha = batch_of(vectors, step), float(vectors[step + "alpha"])
        losses = task.module(batch.pixels, batch, draws_of(vectors, step), task.memory, alpha)
        assert task.memory is not None
        queue = task.memory.queue
        check_image(vectors, step, *seen[-1])
        for ours, theirs in NAMES.items():
            assert_same(losses[ours], vectors[step + theirs], TOLERANCE)
        task.model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        task.after_update(1.0)
        assert_same(queue.image_EQ, vectors[step + "image_queue_after"], TOLERANCE)
        assert_same(queue.text_EQ, vectors[step + "text_queue_after"], TOLERANCE)
        assert queue.next == int(vectors[step + "queue_ptr_after"])
        check_step(vectors, task, number)
        with torch.no_grad():
            for parameter in task.model.parameters():
                assert parameter.grad is not None
                parameter.sub_(vectors.constants["lr"] * parameter.grad)


def looked_at(task: Pretraining) -> list[tuple[TokenStream, Pruning | None]]:
    """Will hold the online tower's images of each step, and what pruned them."""
    seen: list[tuple[TokenStream, Pruning | None]] = []
    inner = task.online.pruned_image

    def looking(*given: torch.Tensor) -> tuple[TokenStream, Pruning | None]:
        seen.append(inner(*given))
        return seen[-1]

    task.online.pruned_image = looking  # type: ignore[method-assign, assignment]
    return seen


def check_image(vectors: Vectors, step: str, image: TokenStream, pruning: Pruning | None) -> None:
    assert_same(image.x, vectors[step + "image_tokens"], TOLERANCE)
    kept = [vectors[name] for name in sorted(vectors.arrays) if name.startswith(step) and name.endswith("/kept_pos")]
    ours = [] if pruning is None else [pruning.selections[layer] for layer in pruning.layers]
    for selection, positions in zip(ours, kept, strict=True):
        assert isinstance(selection, Selection)
        assert torch.equal(selection.kept_BK, positions)


def check_step(vectors: Vectors, task: Pretraining, number: int) -> None:
    gradients = {name: parameter.grad for name, parameter in task.model.named_parameters()}
    wanted = vectors.under(f"step{number}/grad_total/")
    assert wanted
    for name, gradient in wanted.items():
        ours = gradients[name]
        assert ours is not None
        assert_same(ours, gradient, TOLERANCE)
    assert task.memory is not None
    momentum = dict(averaged_parameters(task.memory.teacher.model))
    stored = vectors.under(f"step{number}/momentum/")
    assert stored
    for name, tensor in stored.items():
        assert_same(momentum[official_to_ours(name)], tensor, TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
def test_losses_alone_are_the_references(path: Path | None) -> None:
    vectors = load(path)
    for number in range(vectors.constants["steps"]):
        step = f"step{number}/"
        temp = vectors[step + "temp"].clamp(*TEMPERATURE_LIMITS)
        features = {"image_feat": vectors[step + "image_feat"], "text_feat": vectors[step + "text_feat"], "temp": temp}
        features = {name: tensor.requires_grad_() for name, tensor in features.items()}
        queue = FeatureQueue(1, 1, torch.Generator(), torch.device("cpu"))
        queue.image_EQ, queue.text_EQ = (vectors[f"{step}{name}_queue_before"].clone() for name in ("image", "text"))
        queue.next, alpha = int(vectors[step + "queue_ptr_before"]), float(vectors[step + "alpha"])
        momentum = vectors[step + "image_feat_m"], vectors[step + "text_feat_m"]
        online, temperature = (features["image_feat"], features["text_feat"]), features["temp"]
        found = contrast(*online, *momentum, queue, temperature, alpha, chunk=3)
        assert_same(found, vectors[step + "loss_ita"], TOLERANCE)
        assert_same(found, (vectors[step + "loss_i2t"] + vectors[step + "loss_t2i"]) / 2, TOLERANCE)
        size = vectors.constants["B"]
        image_to_text = similarity(features["image_feat"], momentum[1], features["temp"])
        text_to_image = similarity(features["text_feat"], momentum[0], features["temp"])
        assert_same(image_to_text, vectors[step + "sim_i2t"][:, :size], TOLERANCE)
        assert_same(text_to_image, vectors[step + "sim_t2i"][:, :size], TOLERANCE)
        found.backward()
        for name, tensor in features.items():
            assert tensor.grad is not None
            assert_same(tensor.grad, vectors[f"{step}grad_ita/{name}"], TOLERANCE)
        queue.take()
        assert_same(queue.image_EQ, vectors[step + "image_queue_after"], TOLERANCE)
        matched = matching_loss(vectors[step + "vl_output"], vectors[step + "itm_labels"].bool())
        assert_same(matched, vectors[step + "loss_itm"], TOLERANCE)
        labels = vectors[step + "mlm_labels"]
        told, told_m = (vectors[step + name][labels != -100] for name in ("mlm_logits", "mlm_logits_m"))
        assert_same(word_loss(told, labels[labels != -100], told_m, alpha), vectors[step + "loss_mlm"], TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_negatives_are_the_references(path: Path | None) -> None:
    vectors = load(path)
    size = vectors.constants["B"]
    same = torch.eye(size, dtype=torch.bool)
    for way in (f"step{n}/{{}}_{d}" for n in range(vectors.constants["steps"]) for d in ("i2t", "t2i")):
        weights = negative_weights(vectors[way.format("sim")][:, :size], same, torch.arange(size))
        theirs = vectors[way.format("weights")]  # multinomial, which they are for, divides by their sum
        assert_same(weights, theirs / theirs.sum(1, keepdim=True), TOLERANCE)
