"""For every Python that has this folder in PYTHONPATH: makes the loss of one rank NaN once, when a file asks for it.

No option of Trimline's breaks a loss, and none should; so the fault is put in from outside, before the engine's step.
Besides, it writes down which samples each rank has in each step, in the run's folder; Trimline itself has no such list.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


class _After(importlib.abc.MetaPathFinder):
    """Lets others find a module, and changes what is found."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._change = change

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            self._change(module)

        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


def _break_losses(module: ModuleType) -> None:
    engine = module.Engine
    step = engine.step

    def broken(self: object, loss: object, lr_scale: float) -> object:
        order = Path(os.environ["FAULT_NAN"] + f".{self.process.rank}")  # type: ignore[attr-defined]
        if order.exists():
            order.unlink()
            loss = loss * float("nan")  # type: ignore[operator]
        return step(self, loss, lr_scale)

    engine.step = broken


def _note_samples(module: ModuleType) -> None:
    loop = module._Loop
    update = loop._update

    def noted(self: object, batch: object, progress: float) -> object:
        rank, workers = self.stage.process.rank, self.stage.process.world_size  # type: ignore[attr-defined]
        # Of each its picture, and what stands for the text and the epoch as well.
        samples = list(zip(batch.sample_ids.tolist(), batch.draw_seeds.tolist(), strict=True))  # type: ignore[attr-defined]
        line = {"step": self.step + 1, "rank": rank, "of": workers, "pid": os.getpid()}  # type: ignore[attr-defined]
        run = self.stage.folder.parents[1]  # type: ignore[attr-defined]
        with open(run / f"samples.rank{rank}.jsonl", "a") as file:
            file.write(json.dumps({**line, "samples": samples}) + "\n")
        return update(self, batch, progress)

    loop._update = noted


if "FAULT_NAN" in os.environ:
    sys.meta_path[:0] = [_After("pipeline.engine", _break_losses), _After("pipeline.train", _note_samples)]
