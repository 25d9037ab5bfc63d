"""What the FLOPs promise, against torch's own counter on the real forward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.measure.flops import patch_macs
from pipeline.measure.training_macs import Macs, StepSizes, albef_step_macs, tower_macs
from pipeline.models.schedule import execute
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary, mask_words
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.evit import EvitConfig
from pipeline.pruning.flip import FlipConfig
from pipeline.pruning.tome import TomeConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.recorded import give_negatives
from tests.pipeline.small import MAX_TOKENS, WORDS, scale, small_albef, small_batch

BATCH, QUEUE = 4, 12
UNPRUNED = PruningConfig(method="none")


def by(guidance: str, merge: bool = True, momentum: bool = False) -> PruningConfig:
    elip = ElipConfig(guidance=guidance, depths=(1, 2, 2, 1), ratios=(0.9, 0.6, 0.3), merge=merge)  # type: ignore[arg-type]
    return PruningConfig(prune_momentum=momentum, elip=elip)


VARIANTS = [
    UNPRUNED,
    by("query"),
    by("query", merge=False, momentum=True),
    by("stage"),
    by("stage", momentum=True),
    PruningConfig(method="flip", prune_momentum=True, flip=FlipConfig(drop=0.5)),
    PruningConfig(method="evit", prune_momentum=True, evit=EvitConfig(keep=0.6, layers=(1, 3))),
    PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=2)),
]


@pytest.fixture(scope="module")
def vit_b16() -> VisionTower:
    with torch.device("meta"):
        return VisionTower(VisionConfig(height=224, width_px=224))


def ratio(tower: VisionTower, guidance: str) -> float:
    pruning = PruningConfig(elip=ElipConfig(guidance=guidance))  # type: ignore[arg-type]
    return tower_macs(tower, UNPRUNED).step / tower_macs(tower, pruning).step


def test_the_papers_token_counts() -> None:
    counts = [197, 197, 178, 178, *[129] * 6, 80, 80]
    assert PruningConfig().tokens_by_layer(12, 196) == [(n, n) for n in counts]
    assert UNPRUNED.tokens_by_layer(12, 196) == [(197, 197)] * 12


def test_what_pruning_promises_for_vit_b16_at_224_pixels(vit_b16: VisionTower) -> None:
    assert ratio(vit_b16, "query") == pytest.approx(1.413, abs=0.002)
    assert ratio(vit_b16, "stage") == pytest.approx(1.140, abs=0.002)


def test_the_papers_guidance_would_run_each_stages_last_layer_too(vit_b16: VisionTower) -> None:
    """It then promises 1.05: (3 * 0.712 + 0.728) / 3 of the token-layers; ours needs only that layer's attention."""
    stage = tower_macs(vit_b16, PruningConfig(elip=ElipConfig(guidance="stage")))
    full = tower_macs(vit_b16, UNPRUNED)
    entering = [197, 178, 129]
    last = sum(12 * n * 768**2 + 2 * n**2 * 768 for n in entering)
    assert full.step / (stage.step + last) == pytest.approx(1.05, abs=0.02)


@pytest.mark.parametrize("config", VARIANTS)
def test_the_towers_forward_is_what_torch_counts(config: PruningConfig) -> None:
    model = small_albef(depth=6)
    tower, pixels = model.visual_encoder, scale(small_batch(BATCH).pixels)
    pruning = config.begin(tower, torch.randn(BATCH, tower.config.width), torch.arange(BATCH))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        streams = execute(tower.steps, {"image": tower.embed(pixels)}, [] if pruning is None else [pruning])
    assert streams["image"].x.shape[1] == config.tokens_by_layer(6, tower.config.patches)[-1].mlp
    macs = tower_macs(tower, config)
    assert counter.get_total_flops() == 2 * BATCH * (macs.trained + macs.forward_only)


@pytest.mark.parametrize("config", VARIANTS)
def test_the_whole_steps_forward_is_what_torch_counts(config: PruningConfig) -> None:
    model, batch = small_albef(depth=6), small_batch(BATCH)
    words = Vocabulary(mask=4, size=WORDS)
    task = Pretraining(model, ObjectiveConfig(queue=QUEUE), config, words, scale, torch.Generator().manual_seed(0))
    drawn = mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, 0.15, words).drawn_BL.sum()
    sizes = StepSizes(text_length=MAX_TOKENS, keys=BATCH + QUEUE, words=float(drawn) / BATCH)
    # Contrast makes its gradients along with its loss, and a second time what negatives are drawn by: neither counts.
    give_negatives(task.online, BATCH)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.losses(task.module, batch, 1.0)
    macs = albef_step_macs(model, config, sizes)
    assert counter.get_total_flops() == pytest.approx(2 * BATCH * (macs.trained + macs.forward_only), rel=1e-12)
    losses = task.losses(task.module, batch, 1.0)
    with FlopCounterMode(display=False) as counter:
        losses.total.backward()
    assert counter.get_total_flops() == pytest.approx(2 * (2 * BATCH * macs.trained), rel=0.1)


def test_patches_are_counted(vit_b16: VisionTower) -> None:
    assert patch_macs(vit_b16.config) == 196 * 768 * 768
    assert tower_macs(vit_b16, UNPRUNED).trained / 1e9 == pytest.approx(17.58, abs=0.03)


def test_a_backward_counts_as_two_forwards() -> None:
    assert (Macs(2.0, 1.0) + Macs(forward_only=4.0)).step == 3 * 2 + 5
