"""The evaluation stage: scores of exported models, with intervals and costs, as rows of results.json."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.data.text import Tokenizer
from pipeline.evaluation.classes import classified
from pipeline.evaluation.config import EvaluateConfig, Row, Trained, loader_of
from pipeline.exports import load_backbone
from pipeline.measure.bootstrap import group_interval
from pipeline.progress import ProgressFile
from pipeline.setup import Inputs
from pipeline.tasks.retrieval import Encoded, encode_pairs, join, matching_parts, recalls, rerank
from pipeline.train import Stage
from pipeline.trimming.cost import CostModel, units_of


def evaluate(config: EvaluateConfig, trained: Trained, inputs: Inputs, stage: Stage) -> list[Row]:
    """All rows, in the order retrieval, fine-tuned models.

    Args:
        config: What is evaluated.
        trained: Exports.
        inputs: Data, tokenizer, loader, seed.
        stage: Folder and process.

    Returns:
        Rows {"stage", "method", "target", "task", "split", "metric", "value", "low", "high", "gmacs", "samples",
        "skipped", "seed"}; `samples` were evaluated, `skipped` could not be used. Of fine-tuned models also "wanted",
        "reached" and "unit": the target, and what the model does on this split; "full_gmacs" of the untrimmed model,
        "unpruned_gmacs" of one that does not keep pre-training's pruning either, and "training_gmacs" of all
        fine-tuning that it took (None of exports that do not say).
    """
    tokenizer = inputs.load_tokenizer()
    jobs: list[Callable[[], list[Row]]] = []
    if trained.pretrained is not None:
        for split in config.retrieval_splits:
            jobs.append(partial(_retrieval, config, trained.pretrained, split, inputs, tokenizer, stage))
    for name, folder in trained.trimmed.items():
        for split in config.statement_splits:
            jobs.append(partial(classified, config, name, folder, split, inputs, tokenizer, stage))
    stage.folder.mkdir(parents=True, exist_ok=True)
    progress = ProgressFile(stage.folder / "progress.json", len(jobs), "evaluations")
    rows: list[Row] = []
    for number, job in enumerate(jobs):
        progress.show(number, now=True)
        rows += job()
    progress.show(len(jobs), now=True)
    return [{**row, "seed": inputs.seed} for row in rows]


def _retrieval(
    config: EvaluateConfig, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    device = stage.process.torch_device
    model = load_backbone(folder).to(device)
    parts: list[Encoded] = []
    clusters: list[str] = []
    gmacs: list[float] = []
    cost = CostModel(model, matching_parts(model), None)
    loader = loader_of(inputs, split, "captions", config.batch_size, tokenizer, config.retrieval_pairs, stage)
    for batch in loader:
        batch = batch.to(device)
        parts.append(encode_pairs(model, inputs.normalise(batch.pixels), batch.token_ids, batch.token_mask))
        clusters += batch.clusters
        gmacs += (cost.full(units_of(model, batch.token_mask)) / 1e9).tolist()
    image_ranks, text_ranks = rerank(model, join(parts), config.rerank)
    row = {
        "stage": "pretrain",
        "method": model.config.backbone,
        "target": None,
        "task": "retrieval",
        "split": split,
        "gmacs": sum(gmacs) / len(gmacs),
        "samples": loader.seen,
        "skipped": loader.bad,
    }
    rows = []
    for direction, ranks in (("TR", image_ranks), ("IR", text_ranks)):
        for metric, hits in recalls(ranks).items():
            rows.append({**row, "metric": f"{direction} {metric}", **_interval(hits, clusters)})
    both = [(a + b) / 2 for a, b in zip(*(recalls(r)["R@10"] for r in (image_ranks, text_ranks)), strict=True)]
    return [*rows, {**row, "metric": "R@10", **_interval(both, clusters)}]


def _interval(values: list[float], groups: list[str]) -> dict[str, float]:
    """Percentages."""
    interval = group_interval(values, groups)
    return {"value": 100 * interval.value, "low": 100 * interval.low, "high": 100 * interval.high}
