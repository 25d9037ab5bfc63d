"""Accuracy of statements about pictures, on a split dealt to ranks.

B batch.
"""

from pathlib import Path

from data_prep.errors import UserError
from pipeline.data.loader import StepLoader
from pipeline.engine_config import EngineConfig
from pipeline.evaluate import judged
from pipeline.evaluation.scores import Evaluated, percent
from pipeline.evaluation.source import Source
from pipeline.gathering import all_objects
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.tasks.gallery import check_finite
from pipeline.tasks.statements import StatementModel
from pipeline.together import together

Judged = tuple[float, str, str, float]
"""Right or not, group, cluster, and the multiply-accumulates that it took."""


def evaluate_statements(model: StatementModel, source: Source, loader: StepLoader, *, process: Process) -> Evaluated:
    """Accuracy, and consistency where several pictures belong to one example.

    Args:
        model: In evaluation mode, on the process's device.
        source: Of the model's input.
        loader: Statements, this rank's part.
        process: This rank.

    Raises:
        UserError: No statement could be used, or a score is not finite.
    """
    parts = together(process, lambda: _judged(model, source, loader, process), source.split)
    rows = [row for part in parts for row in part]
    if not rows:
        raise UserError(f"{source.split}: no statement could be used; look at it with `trimline verify`")
    right, groups, clusters, macs = zip(*rows, strict=True)
    scores = [percent("accuracy", (right, clusters))]
    if len(set(clusters)) < len(set(groups)) < len(groups):
        whole: dict[str, float] = {}
        cluster_of = dict(zip(groups, clusters, strict=True))
        for hit, group in zip(right, groups, strict=True):
            whole[group] = min(whole.get(group, 1.0), hit)
        scores.append(percent("consistency", (list(whole.values()), [cluster_of[group] for group in whole])))
    seen, bad = (sum(counts) for counts in zip(*all_objects(process, (loader.seen, loader.bad)), strict=True))
    return Evaluated(scores=scores, gmacs=[each / 1e9 for each in macs], samples=seen, skipped=bad, more={})


def _judged(model: StatementModel, source: Source, loader: StepLoader, process: Process) -> list[Judged]:
    # `judged` wants a run's inputs, of which it uses how pixels are scaled.
    inputs = Inputs(data=Path(), tokenizer=Path(), loader=source.loader, engine=EngineConfig(), seed=0)
    rows: list[Judged] = []
    for batch, scores_B2, macs_B in judged(model, loader, inputs, process.torch_device):
        check_finite(scores_B2.isfinite().all(1), batch.keys.__getitem__, "scores of statements")
        right_B = (scores_B2.argmax(1) == batch.labels).float()
        rows += zip(right_B.tolist(), batch.groups, batch.clusters, macs_B.tolist(), strict=True)
    return rows
