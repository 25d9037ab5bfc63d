"""Whole pre-training steps of ALBEF and of ELIP on ALBEF against the authors' own, in float64."""

from pathlib import Path

import pytest
import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.models.albef import Albef
from pipeline.models.config import TEMPERATURE_LIMITS, ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.objectives.itm import Negatives, negative_weights
from pipeline.objectives.mlm import MaskedWords, Vocabulary
from pipeline.objectives.momentum import averaged_parameters
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.online import Draws, ObjectiveConfig
from pipeline.tasks.pretraining import Pretraining
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("itc/*.npz")
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
    for head in ("vision_proj", "text_proj"):
        getattr(task.memory.teacher.model, head).load_state_dict(
            {"weight": weights[f"{head}_m.weight"], "bias": weights[f"{head}_m.bias"]}
        )
    task.memory.queue.image_EQ = vectors["state/image_queue"].clone()
    task.memory.queue.text_EQ = vectors["state/text_queue"].clone()
    return task


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
    for number in range(vectors.constants["steps"]):
        step = f"step{number}/"
        task.model.temp.data.clamp_(*TEMPERATURE_LIMITS)  # the reference does so here, ours after each update
        task.before_update(1.0)
        batch, alpha = batch_of(vectors, step), float(vectors[step + "alpha"])
        losses = task.module(batch.pixels, batch, draws_of(vectors, step), task.memory, alpha)
        assert task.memory is not None
        queue = task.memory.queue
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
    stored = {name: t for name, t in vectors.under(f"step{number}/momentum/").items() if name in momentum}
    for name, tensor in stored.items():
        assert_same(momentum[name], tensor, TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_negatives_are_the_references(path: Path | None) -> None:
    vectors = load(path)
    size = vectors.constants["B"]
    same = torch.eye(size, dtype=torch.bool)
    for direction in ("i2t", "t2i"):
        weights = negative_weights(vectors[f"step0/sim_{direction}"][:, :size], same, torch.arange(size))
        theirs = vectors[f"step0/weights_{direction}"]  # multinomial, which they are for, divides by their sum
        assert_same(weights, theirs / theirs.sum(1, keepdim=True), TOLERANCE)
