"""Recomputed activations change nothing but time and memory."""

import pytest
import torch

from pipeline.measure.saved_bytes import saved_bytes
from pipeline.models.blocks import recompute_activations
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_batch, small_model
from tests.pipeline.test_pretraining import BACKBONES, pruning_by


def task_of(backbone: BackboneName, method: str) -> Pretraining:
    words, generator = Vocabulary(mask=4, size=WORDS - 2), torch.Generator().manual_seed(0)
    return Pretraining(small_model(backbone), ObjectiveConfig(queue=6), pruning_by(method), words, scale, generator)


@pytest.mark.parametrize("method", ["elip", "evit", "tome"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_recomputed_activations_give_the_same_gradients_with_less_memory(backbone: BackboneName, method: str) -> None:
    gradients, kept = [], []
    for recompute in (False, True):
        task = task_of(backbone, method)
        if recompute:
            recompute_activations(task.module)
        losses = []
        kept.append(saved_bytes(lambda: losses.append(task.losses(task.module, small_batch(4), 1.0)), []))  # noqa: B023
        losses[0].total.backward()
        gradients.append({name: p.grad for name, p in task.model.named_parameters()})
    assert kept[1] < 0.5 * kept[0]
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
