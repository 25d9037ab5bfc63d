"""`trimline score`: scores of a file of predictions."""

from dataclasses import asdict
from pathlib import Path

from data_prep.errors import UserError
from launch.answers import Answer
from launch.report.table import aligned
from pipeline.metrics.captions import has_spice
from pipeline.metrics.tasks import SCORED, Score


def score_command(task: str, predictions: Path, annotations: Path, subset: bool) -> Answer:
    """Scores, and says of how many samples.

    Args:
        task: One of `SCORED`.
        predictions: In the format that the task's server takes.
        annotations: The data set's published file.
        subset: Whether samples without a prediction are left out.

    Raises:
        UserError: A file is missing, damaged, or belongs to other samples.
    """
    for file, what in ((predictions, "--predictions"), (annotations, "--annotations")):
        if not file.is_file():
            raise UserError(f"{what} {file}: {'a folder; give a file in it' if file.is_dir() else 'no such file'}")
    scores = SCORED[task](predictions, annotations, subset)
    answer = {
        "task": task,
        "predictions": str(predictions),
        "annotations": str(annotations),
        "subset": subset,
        "scores": [asdict(score) for score in scores],
    }
    return 0, answer, _table(task, scores)


def _table(task: str, scores: list[Score]) -> str:
    cells = [["metric", "score", "95% interval", "samples"]]
    for one in scores:
        cells.append([one.metric, f"{one.value:.2f}", f"{one.low:.2f} to {one.high:.2f}", str(one.samples)])
    lines = aligned(cells, 1)
    if task == "captions" and not has_spice():
        lines += ["", "no SPICE: its model files do not lie in pycocoevalcap/spice/lib, where its own script puts them"]
    return "\n".join(lines)
