"""One update of a training: losses of a batch, or of its parts, through the engine."""

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.engine import Engine, StepReport
from pipeline.tasks.task import Losses, Task


def update(
    task: Task, engine: Engine, batch: ImageTextBatch, progress: float, lr_scale: float
) -> tuple[dict[str, Tensor], StepReport]:
    """Makes one of a batch; where gradients are accumulated, the batch is cut and the values are means over its parts.

    Args:
        task: Gives the losses.
        engine: Takes the step.
        batch: This process's share of the global batch, on its device.
        progress: Share of training done.
        lr_scale: Learning rate over its peak.

    Returns:
        What is logged, scalars, and what the engine said of the last part, which ended the update.

    Raises:
        NonFiniteError: On every process, where a loss or gradient is not a number.
    """
    task.before_update(progress)
    values = []  # of each part
    # The task gives the losses of a part when they are asked for: the graph of one part only is alive.
    for losses in task.losses_of_parts(engine, _parts(batch, engine.config.accumulation), progress):
        report = engine.step(losses.total, lr_scale)  # the weights change with the last part
        values.append(_values(losses, report))
    task.after_update(progress)
    means = {name: torch.stack([of_part[name] for of_part in values]).mean() for name in values[0]}
    return {**means, "grad_norm": torch.tensor(report.grad_norm)}, report


def _values(losses: Losses, report: StepReport) -> dict[str, Tensor]:
    """What is logged of a part; it stays on the device until a line is due: one transfer then, none in between."""
    named = {f"loss/{name}": value for name, value in losses.named.items()}
    values = {"loss": report.loss, "lr": report.lr, **named, **losses.scalars}
    return {name: torch.as_tensor(value).detach().float() for name, value in values.items()}


def _parts(batch: ImageTextBatch, count: int) -> list[ImageTextBatch]:
    """The batch in `count` parts of the same size, in order."""
    if count == 1:
        return [batch]
    size = len(batch) // count
    return [batch.part(slice(start, start + size)) for start in range(0, size * count, size)]
