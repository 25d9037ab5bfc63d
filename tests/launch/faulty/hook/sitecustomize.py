"""For every Python that has this folder in PYTHONPATH: makes the loss of one rank NaN once, when a file asks for it.

No option of Trimline's breaks a loss, and none should; so the fault is put in from outside, before the engine's step.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType


class _AfterEngine(importlib.abc.MetaPathFinder):
    """Lets others find `pipeline.engine`, and wraps what is found."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "pipeline.engine":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            _wrap(module.Engine)

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec


def _wrap(engine: type) -> None:
    step = engine.step  # type: ignore[attr-defined]

    def broken(self: object, loss: object, lr_scale: float) -> object:
        order = Path(os.environ["FAULT_NAN"] + f".{self.process.rank}")  # type: ignore[attr-defined]
        if order.exists():
            order.unlink()
            loss = loss * float("nan")  # type: ignore[operator]
        return step(self, loss, lr_scale)

    engine.step = broken  # type: ignore[attr-defined]


if "FAULT_NAN" in os.environ:
    sys.meta_path.insert(0, _AfterEngine())
