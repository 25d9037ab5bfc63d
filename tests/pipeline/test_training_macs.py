"""What the FLOPs promise, against torch's own counter on the real forward."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.measure.flops import patch_macs
from pipeline.measure.training_macs import Macs, StepSizes, albef_step_macs, token_counts, vision_macs
from pipeline.models.schedule import execute
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.objectives.mlm import Vocabulary, mask_words
from pipeline.pruning.elip import ElipConfig, TextGuidedPruning
from pipeline.tasks.pretraining import AlbefPretraining, ObjectiveConfig
from tests.pipeline.small import MAX_TOKENS, WORDS, scale, small_albef, small_batch

BATCH, QUEUE = 4, 12
VARIANTS = [
    ElipConfig(guidance=guidance, depths=(1, 2, 2, 1), ratios=(0.9, 0.6, 0.3), merge=merge, prune_momentum=momentum)
    for guidance, merge, momentum in [
        ("none", True, False),
        ("query", True, False),
        ("query", False, True),
        ("stage", True, False),
        ("stage", True, True),
    ]
]


@pytest.fixture(scope="module")
def vit_b16() -> VisionTower:
    with torch.device("meta"):
        return VisionTower(VisionConfig(height=224, width_px=224))


def ratio(tower: VisionTower, elip: ElipConfig) -> float:
    return vision_macs(tower, replace(elip, guidance="none")).step / vision_macs(tower, elip).step


def test_the_papers_token_counts() -> None:
    assert token_counts(ElipConfig(), 12, 196) == [197, 197, 178, 178, *[129] * 6, 80, 80]
    assert token_counts(ElipConfig(guidance="none"), 12, 196) == [197] * 12


def test_what_pruning_promises_for_vit_b16_at_224_pixels(vit_b16: VisionTower) -> None:
    assert ratio(vit_b16, ElipConfig(guidance="query")) == pytest.approx(1.413, abs=0.002)
    assert ratio(vit_b16, ElipConfig(guidance="stage")) == pytest.approx(1.140, abs=0.002)


def test_the_papers_guidance_would_run_each_stages_last_layer_too(vit_b16: VisionTower) -> None:
    """It then promises 1.05: (3 * 0.712 + 0.728) / 3 of the token-layers; ours needs only that layer's attention."""
    full, stage = vision_macs(vit_b16, ElipConfig(guidance="none")), vision_macs(vit_b16, ElipConfig(guidance="stage"))
    entering = [197, 178, 129]
    last = sum(12 * n * 768**2 + 2 * n**2 * 768 for n in entering)
    assert full.step / (stage.step + last) == pytest.approx(1.05, abs=0.02)


@pytest.mark.parametrize("elip", VARIANTS)
def test_the_towers_forward_is_what_torch_counts(elip: ElipConfig) -> None:
    model = small_albef(depth=6)
    tower, pixels = model.visual_encoder, scale(small_batch(BATCH).pixels)
    pruning = TextGuidedPruning(elip, tower.steps, tower.config.patches, torch.randn(BATCH, tower.config.width))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        streams = execute(tower.steps, {"image": tower.embed(pixels)}, [] if elip.guidance == "none" else [pruning])
    assert streams["image"].x.shape[1] == token_counts(elip, 6, tower.config.patches)[-1]
    macs = vision_macs(tower, elip)
    assert counter.get_total_flops() == 2 * BATCH * (macs.trained + macs.forward_only)


@pytest.mark.parametrize("elip", VARIANTS)
def test_the_whole_steps_forward_is_what_torch_counts(elip: ElipConfig) -> None:
    model, batch = small_albef(depth=6), small_batch(BATCH)
    words = Vocabulary(mask=4, size=WORDS)
    task = AlbefPretraining(model, ObjectiveConfig(queue=QUEUE), elip, words, scale, torch.Generator().manual_seed(0))
    drawn = mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, 0.15, words).drawn_BL.sum()
    sizes = StepSizes(text_length=MAX_TOKENS, keys=BATCH + QUEUE, words=float(drawn) / BATCH)
    with FlopCounterMode(display=False) as counter:
        losses = task.losses(task.module, batch, 1.0)
    macs = albef_step_macs(model, elip, sizes)
    assert counter.get_total_flops() == pytest.approx(2 * BATCH * (macs.trained + macs.forward_only), rel=1e-12)
    with FlopCounterMode(display=False) as counter:
        losses.total.backward()
    assert counter.get_total_flops() == pytest.approx(2 * (2 * BATCH * macs.trained), rel=0.1)


def test_patches_are_counted(vit_b16: VisionTower) -> None:
    assert patch_macs(vit_b16.config) == 196 * 768 * 768
    assert vision_macs(vit_b16, ElipConfig(guidance="none")).trained / 1e9 == pytest.approx(17.58, abs=0.03)


def test_a_backward_counts_as_two_forwards() -> None:
    assert (Macs(2.0, 1.0) + Macs(forward_only=4.0)).step == 3 * 2 + 5
