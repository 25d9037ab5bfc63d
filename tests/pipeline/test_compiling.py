"""Compiled blocks change nothing, break nowhere, and are few."""

from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.models.compiling import compile_blocks, leave_uncompiled
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_batch, small_model
from tests.pipeline.test_pretraining import pruning_by

STAGE = PruningConfig(elip=ElipConfig(guidance="stage", depths=(1, 2, 1), ratios=(0.75, 0.5)))


def task_of(backbone: BackboneName, pruning: PruningConfig) -> Pretraining:
    words, generator = Vocabulary(mask=4, size=WORDS - 2), torch.Generator().manual_seed(0)
    return Pretraining(small_model(backbone), ObjectiveConfig(queue=6), pruning, words, scale, generator)


def step(task: Pretraining, seed: int) -> list[torch.Tensor]:
    """Losses and some gradients."""
    task.module.zero_grad()
    losses = task.losses(task.module, small_batch(4, seed=seed), 1.0)
    losses.total.backward()
    tower = task.model.visual_encoder
    gradients = [tower.patch_embed.proj.weight.grad, tower.blocks[-1].mlp.fc1.weight.grad]  # type: ignore[union-attr]
    return [*losses.named.values(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize(
    ("backbone", "method", "graphs"),
    [
        # Image blocks of four numbers of tokens, of a first and of a later gradient; text, fusion; the momentum tower.
        ("albef", "elip", 12),
        ("albef", "stage", 12),
        ("albef", "evit", 12),
        ("albef", "tome", 12),
        ("clip", "none", 4),
        ("clip", "elip", 8),
        ("clip", "stage", 10),
    ],
)
def test_compiled_blocks_are_whole_graphs_for_all_steps(backbone: BackboneName, method: str, graphs: int) -> None:
    pruning = STAGE if method == "stage" else pruning_by(method)
    plain, task = task_of(backbone, pruning), task_of(backbone, pruning)
    wanted = [step(plain, seed) for seed in range(3)]
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(task.module, fullgraph=True, backend="eager")
    first = step(task, 0)
    made = Counter(counters["stats"])["unique_graphs"]
    torch.testing.assert_close([first, *(step(task, seed) for seed in (1, 2))], wanted)
    assert Counter(counters["stats"])["unique_graphs"] == made <= graphs


def test_the_momentum_tower_is_compiled_with_the_module_that_it_is_part_of() -> None:
    task = task_of("albef", STAGE)
    assert task.memory is not None
    compile_blocks(task.module, backend="eager")
    blocks = [*task.model.visual_encoder.blocks, *task.memory.teacher.model.visual_encoder.blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert task.model.visual_encoder._compiled_call_impl is None
    leave_uncompiled(task.module)
    assert all(block._compiled_call_impl is None for block in blocks)
