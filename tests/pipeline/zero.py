"""Small pre-training runs under any engine, for tests that compare them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.engine import Engine, EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.fragments import FragmentFiles, Held
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_batch, small_model

BATCH = 12
BETAS = (0.9, 0.999)
UNPRUNED = PruningConfig(method="none")
NOTHING_KEPT_WHOLE = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""ZeRO 3 else keeps parameters as small as these tests' whole between their uses."""


def engine_config(stage: int | None, **more: Any) -> EngineConfig:
    """DeepSpeed's with a ZeRO stage; None for the plain engine."""
    if stage is None:
        return EngineConfig(name="torch", **more)
    if stage == 3:
        more = {"deepspeed_json": NOTHING_KEPT_WHOLE, **more}
    return EngineConfig(zero_stage=stage, **more)  # type: ignore[arg-type]


class SmallRun:
    """Pre-training of a small backbone on the same batches over any number of ranks."""

    def __init__(
        self,
        process: Process,
        config: EngineConfig,
        backbone: BackboneName = "albef",
        lr: float = 1e-3,
        pruning: PruningConfig = UNPRUNED,
        **constants: Any,
    ) -> None:
        objectives = ObjectiveConfig(
            **{"queue": 24, "mask_share": 0.4, "negatives": "global", "alpha_ramp": 0.0, **constants}
        )
        words = Vocabulary(mask=4, size=WORDS - 2)
        self.model = small_model(backbone, depth=2)
        self.task = Pretraining(self.model, objectives, pruning, words, scale, torch.Generator().manual_seed(0))
        self.process = process
        optimizer = OptimizerConfig(lr=lr, betas=BETAS)
        groups = split_decay(self.model)
        self.engine: Engine = build_engine(config, optimizer, self.task.module, groups, process)
        self.done = 0
        self.named: dict[str, float] = {}
        """This rank's losses in the last part of the last step."""

    def step(self, only: str | None = None) -> list[float]:
        """The loss of one update, averaged over ranks and parts, and the gradient's norm.

        Args:
            only: The one loss to minimise; None for the sum of all.
        """
        self.task.before_update(0.5)
        parts = self.engine.config.accumulation
        size = BATCH // self.process.world_size // parts
        whole, found = small_batch(BATCH, seed=self.done), []
        first = [(part * self.process.world_size + self.process.rank) * size for part in range(parts)]
        batches = [whole.part(slice(start, start + size)) for start in first]
        for losses in self.task.losses_of_parts(self.engine, batches, 0.5):
            report = self.engine.step(losses.total if only is None else losses.named[only], 1.0)
            self.named = {name: loss.item() for name, loss in losses.named.items()}
            found.append(report.loss)
        self.task.after_update(0.5)
        self.done += 1
        return [sum(found) / parts, report.grad_norm]


def whole_state(files: list[Path], shapes: dict[str, list[int]], kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors of a checkpoint's engine files that there are, whole, by kind and name."""
    read = FragmentFiles(sorted(files))
    return dict(_whole(read, shapes, kinds))


def _whole(read: FragmentFiles, shapes: dict[str, list[int]], kinds: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        for kind in kinds:
            if read.has(kind, name):
                flat = torch.empty(torch.Size(shape).numel())
                read.read_into(Held(name, 0, {kind: flat}))
                yield f"{kind}/{name}", flat.reshape(shape)
