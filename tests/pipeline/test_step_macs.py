"""What utilisation is reckoned by, against torch's own counter on real steps of every backbone and stage."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.measure.step_macs import classification_macs, pretraining_macs
from pipeline.measure.training_macs import StepSizes
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary, mask_words
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.evit import EvitConfig
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.ftkd import TaughtClassification
from pipeline.tasks.pretraining import Pretraining
from pipeline.trimming.cost import units_of
from pipeline.trimming.ftkd import FtkdConfig, Layers
from pipeline.trimming.trimmers import TrimmerConfig
from tests.pipeline.recorded import give_negatives
from tests.pipeline.small import MAX_TOKENS, WORDS, scale, small_batch, small_model

BATCH, QUEUE = 4, 12
ELIP = PruningConfig(prune_momentum=True, elip=ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5)))
EVIT = PruningConfig(method="evit", evit=EvitConfig(keep=0.7, layers=(1, 2)))
UNPRUNED = PruningConfig(method="none")


@pytest.mark.parametrize("pruning", [UNPRUNED, ELIP, EVIT], ids=["none", "elip", "evit"])
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter", "clip"])
def test_a_pre_training_step_costs_what_torch_counts(backbone: BackboneName, pruning: PruningConfig) -> None:
    model, batch = small_model(backbone), small_batch(BATCH)
    vocabulary = Vocabulary(mask=4, size=WORDS - 2)
    objectives = ObjectiveConfig(queue=QUEUE, mask_share=0.4)
    task = Pretraining(model, objectives, pruning, vocabulary, scale, torch.Generator().manual_seed(0))
    masked = mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, 0.4, vocabulary).drawn_BL.sum()
    words = (batch.token_mask.sum() - BATCH) if backbone == "blip" else masked
    keys = BATCH if task.memory is None else BATCH + QUEUE
    macs = pretraining_macs(model, pruning, StepSizes(text_length=MAX_TOKENS, keys=keys, words=float(words) / BATCH))
    # Contrast makes its gradients along with its loss, and a second time what negatives are drawn by: neither counts.
    give_negatives(task.online, BATCH)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.losses(task.module, batch, 1.0)
    assert counter.get_total_flops() == pytest.approx(2 * BATCH * (macs.trained + macs.forward_only), rel=1e-9)
    losses = task.losses(task.module, batch, 1.0)
    with FlopCounterMode(display=False) as counter:
        losses.total.backward()
    assert counter.get_total_flops() == pytest.approx(2 * BATCH * 2 * macs.trained, rel=0.15)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
@pytest.mark.parametrize("target", [1.0, 1.5])
def test_fine_tuning_costs_what_torch_counts(backbone: BackboneName, target: float) -> None:
    torch.manual_seed(0)
    trimmers = TrimmerConfig(width_share=0.1) if target > 1 else None
    model, batch = ClassificationModel(small_model(backbone), trimmers), small_batch(BATCH)
    batch = replace(batch, token_mask=torch.ones_like(batch.token_mask))
    config = SmartTrimConfig() if trimmers is None else SmartTrimConfig(trimmers=trimmers)
    task = ClassificationTask(model, scale, target, config, units_of(model.backbone, batch.token_mask))
    with FlopCounterMode(display=False) as counter:
        task.losses(model, batch, 1.0).total.backward()
    wanted = 2 * BATCH * classification_macs(model, MAX_TOKENS, full=True)
    # A first layer needs no gradient of its input, which counts more in a small model than in a large one.
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_a_students_step_and_its_teachers_cost_what_torch_counts(backbone: BackboneName) -> None:
    torch.manual_seed(0)
    teacher, batch = ClassificationModel(small_model(backbone), None), small_batch(BATCH)
    batch = replace(batch, token_mask=torch.ones_like(batch.token_mask))
    whole, units = teacher.backbone.config, units_of(teacher.backbone, batch.token_mask)
    sizes = Layers(vision=2, text=1, fusion=1).cut(whole)
    student = ClassificationModel(build_model(sizes), None, whole=whole)
    task = TaughtClassification(student, teacher, scale, 2.0, FtkdConfig(), units)
    # What is computed once more for the losses does not count, as what is to save memory: it is kept to one map.
    task.layers.attention = dict(list(task.layers.attention.items())[-1:])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.losses(student, batch, 1.0)
    whole_macs = float(student.full_macs(units)[0])
    wanted = (classification_macs(student, MAX_TOKENS, full=True) - whole_macs) / 3 + whole_macs
    assert counter.get_total_flops() == pytest.approx(2 * BATCH * wanted, rel=0.05)
