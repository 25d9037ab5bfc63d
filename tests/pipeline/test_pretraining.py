"""Whole pre-training steps of the four backbones: over two processes as on one, repeatable, and with every loss."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pretrain import check_guidance
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.evit import EvitConfig
from pipeline.pruning.tome import TomeConfig
from pipeline.tasks.candidates import Candidates
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import WORDS, scale, small_batch, small_config, small_model

BACKBONES: list[BackboneName] = ["albef", "blip", "meter", "clip"]
LOSSES = {"albef": {"itc", "itm", "mlm"}, "blip": {"itc", "itm", "lm"}, "meter": {"itm", "mlm"}, "clip": {"itc"}}
ELIP = ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5))


# ELIP's odd settings by a name of their own: the text alone guides by a whole stage and nothing is merged, or the image
# alone guides and its momentum copy sees all tokens.
ELIPS = {
    "elip": ELIP,
    "other": replace(ELIP, sentence="other"),
    "masked": replace(ELIP, sentence="masked"),
    "text alone": replace(ELIP, guidance="stage", vision_weight=0.0, merge=False, count_base="tokens"),
    "image alone": replace(ELIP, vision_weight=1.0),
}


def pruning_by(method: str) -> PruningConfig:
    evit, tome = EvitConfig(keep=0.7, layers=(1, 2)), TomeConfig(merged_per_layer=2)
    elip, name = ELIPS.get(method, ELIP), "elip" if method in ELIPS else method
    momentum = method != "image alone"
    return PruningConfig(method=name, prune_momentum=momentum, elip=elip, evit=evit, tome=tome)  # type: ignore[arg-type]


Result = tuple[dict[str, Tensor], dict[str, Tensor]]


def step_of_rank(process: Process, backbone: BackboneName, method: str, negatives: str) -> Result:
    """Losses and gradients of this rank's share of eight samples."""
    torch.set_default_dtype(torch.float64)
    try:
        objectives = ObjectiveConfig(queue=6, mask_share=0.4, negatives=negatives)  # type: ignore[arg-type]
        model, words = small_model(backbone), Vocabulary(mask=4, size=WORDS - 2)
        task = Pretraining(model, objectives, pruning_by(method), words, scale, torch.Generator().manual_seed(0))
        share = 8 // process.world_size
        batch = small_batch(8).part(slice(process.rank * share, (process.rank + 1) * share))
        losses = task.losses(task.module, batch, 1.0)
        losses.total.backward()
        named = {name: loss.detach() for name, loss in losses.named.items()}
        return named, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    finally:
        torch.set_default_dtype(torch.float32)


# METER has no "other": it prunes each pair by the text that it fuses.
WAYS = [(b, m) for b in BACKBONES for m in ("elip", "other", "tome", "none") if (b, m) != ("meter", "other")]
ODD: list[tuple[BackboneName, str]] = [
    ("albef", "masked"), ("albef", "text alone"), ("blip", "image alone"), ("blip", "evit"), ("meter", "text alone"),
    ("meter", "flip"), ("clip", "flip"),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "method"), WAYS + ODD)
def test_two_processes_compute_losses_and_gradients_of_the_whole_batch(backbone: BackboneName, method: str) -> None:
    losses, gradients = step_of_rank(Process(), backbone, method, "global")
    parts = run_ranks(step_of_rank, 2, backbone, method, "global")
    assert set(losses) == LOSSES[backbone]
    for name, loss in losses.items():
        torch.testing.assert_close(sum(part[0][name] for part in parts) / 2, loss)
    assert gradients and all(set(part[1]) == set(gradients) for part in parts)
    for name, gradient in gradients.items():
        torch.testing.assert_close((parts[0][1][name] + parts[1][1][name]) / 2, gradient, msg=name)


def fixed_losses_of_rank(process: Process, backbone: BackboneName) -> dict[str, Tensor]:
    """Of this rank's share of a batch that trainings are compared by, where training itself draws local negatives."""
    torch.set_default_dtype(torch.float64)
    try:
        objectives = ObjectiveConfig(queue=6, mask_share=0.4, negatives="local")
        model, words = small_model(backbone), Vocabulary(mask=4, size=WORDS - 2)
        task = Pretraining(model, objectives, pruning_by("elip"), words, scale, torch.Generator().manual_seed(0))
        share = 8 // process.world_size
        batch = small_batch(8).part(slice(process.rank * share, (process.rank + 1) * share))
        named = {name: loss.detach() for name, loss in task.fixed_losses(task.module, batch).items()}
        assert task.online.objectives is objectives
        return named
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backbone", ["albef", "clip"])
def test_losses_of_a_fixed_batch_are_the_same_on_two_processes(backbone: BackboneName) -> None:
    alone = fixed_losses_of_rank(Process(), backbone)
    parts = run_ranks(fixed_losses_of_rank, 2, backbone)
    for name, loss in alone.items():
        torch.testing.assert_close(sum(part[name] for part in parts) / 2, loss)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_repeats_and_trains_every_weight(backbone: BackboneName) -> None:
    first, again = (step_of_rank(Process(), backbone, "elip", "local") for _ in range(2))
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    untouched = {name for name, _ in small_model(backbone).named_parameters()} - set(first[1])
    assert not untouched, untouched
    # Of the last selection no gradient reaches the guiding text but through the losses themselves.
    assert all(gradient.isfinite().all() for gradient in first[1].values())


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_text_of_another_width_than_vision_cannot_guide(backbone: BackboneName) -> None:
    config = small_config(backbone=backbone)
    config = replace(config, text=replace(config.text, width=24))
    with pytest.raises(UserError, match=r"model\.text\.width=24 must equal model\.vision\.width=32"):
        check_guidance(pruning_by("elip"), config)
    check_guidance(pruning_by("flip"), config)


def test_clips_text_of_another_width_guides_through_the_projection() -> None:
    config = small_config(backbone="clip")
    config = replace(config, text=replace(config.text, width=24))
    check_guidance(pruning_by("elip"), config)
    from pipeline.models.build import build_model

    model = build_model(config)
    text = model.encode_text(torch.tensor([[2, 7, 3, 0]]), torch.tensor([[True, True, True, False]]))
    feature = model.text_feature(text)
    torch.testing.assert_close(model.sentence(text), feature @ model.vision_proj.weight)
    assert not model.sentence(text).requires_grad


def test_another_rows_sentence_is_never_that_of_the_same_image_or_words() -> None:
    batch = small_batch(5)
    ids = batch.token_ids.clone()
    ids[2] = ids[1]
    batch = replace(batch, token_ids=ids, sample_ids=torch.tensor([0, 1, 2, 2, 4]))
    assert Candidates.of(batch, False).next_other().tolist() == [1, 3, 4, 4, 0]
    alike = replace(batch, token_ids=ids[:1].expand(5, -1))
    assert Candidates.of(alike, False).next_other().tolist() == [1, 2, 3, 4, 0]


def test_blip_makes_an_images_keys_once_for_matching_and_captioning() -> None:
    model = small_model("blip")
    task = Pretraining(
        model,
        ObjectiveConfig(queue=0),
        pruning_by("elip"),
        Vocabulary(mask=4, size=WORDS - 2),
        scale,
        torch.Generator(),
    )
    counts: list[int] = []
    for block in model.text_encoder.encoder.layer:  # type: ignore[union-attr]
        block.crossattention.self.key.register_forward_hook(lambda *_: counts.append(1))  # type: ignore[union-attr]
    task.losses(task.module, small_batch(4), 1.0).total.backward()
    assert len(counts) == 2  # one for each of the two layers
