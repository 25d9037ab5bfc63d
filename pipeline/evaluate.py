"""The evaluation stage: scores of exported models, with intervals and costs, as rows of results.json."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import StepLoader
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.shards import EveryImage, TextKind
from pipeline.data.text import Tokenizer
from pipeline.evaluation.retrieval import evaluate_retrieval
from pipeline.evaluation.source import Source
from pipeline.exports import load_backbone, load_statement_model, method_of
from pipeline.limits import at_least
from pipeline.measure.bootstrap import group_interval
from pipeline.measure.latency import Latency, LatencyConfig, alike, alone, candidates, packed_latency
from pipeline.models.schedule import Intervention
from pipeline.process import Process
from pipeline.progress import ProgressFile
from pipeline.setup import Inputs
from pipeline.tasks.statements import StatementModel
from pipeline.train import Stage
from pipeline.trim_settle import reached
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated.

    Attributes:
        retrieval_splits: Splits on which the pre-trained model ranks images and captions.
        retrieval_pairs: Images taken from each, with their captions.
        retrieval_captions: ``first`` has one caption of each image, so that these are pairs; ``all`` is the field's
            protocol.
        rerank: Candidates that matching re-ranks; 0 ranks by contrast alone.
        statement_splits: Splits on which trimmed models judge statements, every one of them.
        batch_size: Instances at once; scores do not depend on it.
        pictures: Pictures on which surviving patches are drawn; 0 for none.
        picture_split: Where they are taken from; None for the first statement or retrieval split.
        latency: How milliseconds are taken, where a target is a time.
    """

    retrieval_splits: tuple[str, ...] = ("test",)
    retrieval_pairs: int = 512
    retrieval_captions: Literal["first", "all"] = "first"
    rerank: int = 16
    statement_splits: tuple[str, ...] = ("test",)
    batch_size: int = 64
    pictures: int = 6
    picture_split: str | None = None
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        at_least(self, "evaluate", 1, "retrieval_pairs", "batch_size")
        at_least(self, "evaluate", 0, "rerank", "pictures")


@dataclass(frozen=True)
class Trained:
    """Exports to evaluate: of pre-training (None where it is not asked), and of each trimming stage by name."""

    pretrained: Path | None
    trimmed: dict[str, Path]


def evaluate(config: EvaluateConfig, trained: Trained, inputs: Inputs, stage: Stage) -> list[Row]:
    """All rows, in the order retrieval, statements.

    Args:
        config: What is evaluated.
        trained: Exports.
        inputs: Data, tokenizer, loader, seed.
        stage: Folder and process.

    Returns:
        Rows {"stage", "method", "target", "task", "split", "metric", "value", "low", "high", "gmacs", "samples",
        "skipped", "seed"}; `samples` were evaluated, `skipped` could not be used. Of statements also "wanted",
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
            jobs.append(partial(_statements, config, name, folder, split, inputs, tokenizer, stage))
    stage.folder.mkdir(parents=True, exist_ok=True)
    progress = ProgressFile(stage.folder / "progress.json", len(jobs), "evaluations")
    rows: list[Row] = []
    for number, job in enumerate(jobs):
        progress.show(number, now=True)
        rows += job()
    progress.show(len(jobs), now=True)
    return [{**row, "seed": inputs.seed} for row in rows]


def loader_of(
    inputs: Inputs,
    split: str,
    text: TextKind,
    batch_size: int,
    tokenizer: Tokenizer,
    limit: int | None = None,
    stage: Stage | None = None,
    spread: bool = False,
) -> StepLoader:
    """Every statement of a split once, or one caption of each picture."""
    quarantine = None if stage is None else stage.folder / QUARANTINE
    source = Source(split=inputs.data / split, loader=inputs.loader, tokenizer=tokenizer, quarantine=quarantine)
    return source.batches(text, batch_size, Process(), limit, spread)


def _retrieval(
    config: EvaluateConfig, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    model = load_backbone(folder).to(stage.process.torch_device)
    source = Source(
        split=inputs.data / split, loader=inputs.loader, tokenizer=tokenizer, quarantine=stage.folder / QUARANTINE
    )
    found = evaluate_retrieval(
        model,
        source,
        source.batches(EveryImage(), config.batch_size, stage.process, config.retrieval_pairs),
        batch_size=config.batch_size,
        rerank=config.rerank,
        captions=1 if config.retrieval_captions == "first" else None,
        process=stage.process,
    )
    row = {
        "stage": "pretrain",
        "method": model.config.backbone,
        "target": None,
        "task": "retrieval",
        "split": split,
        "gmacs": sum(found.gmacs) / len(found.gmacs),
        "samples": found.samples,
        "skipped": found.skipped,
    }
    # The means of one way follow from the three before; with them a run's table would not fit on a screen.
    return [{**row, **asdict(score)} for score in found.scores if not score.metric.endswith(" mean")]


def _statements(
    config: EvaluateConfig, name: str, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    model, described = load_statement_model(folder)
    model = model.to(stage.process.torch_device)
    right: list[float] = []
    macs: list[float] = []
    full: list[float] = []
    unpruned: list[float] = []
    groups: list[str] = []
    clusters: list[str] = []
    target = Target.parse(described["target"])
    loader = loader_of(inputs, split, "statements", config.batch_size, tokenizer, None, stage)
    for batch, scores_B2, macs_B in judged(model, loader, inputs, stage.process.torch_device):
        right += (scores_B2.argmax(1) == batch.labels).float().tolist()
        macs += macs_B.tolist()
        units = units_of(model.backbone, batch.token_mask)
        full += model.full_macs(units).tolist()
        unpruned += model.unpruned_macs(units).tolist()
        groups += batch.groups
        clusters += batch.clusters
    row = {
        "stage": name,
        "method": method_of(described),
        "target": target.amount if target.unit == "x" else str(target),
        "task": "statement",
        "split": split,
        "gmacs": sum(macs) / len(macs) / 1e9,
        "full_gmacs": sum(full) / len(full) / 1e9,
        "unpruned_gmacs": sum(unpruned) / len(unpruned) / 1e9,
        "training_gmacs": _training_gmacs(described.get("training")),
        "samples": loader.seen,
        "skipped": loader.bad,
        **reached(target, macs, full, partial(_latency, config, model, macs, split, inputs, tokenizer)),
    }
    rows = [{**row, "metric": "accuracy", **_interval(right, clusters)}]
    if len(set(groups)) < len(groups) and len(set(clusters)) < len(set(groups)):
        rows.append({**row, "metric": "consistency", **_consistency(right, groups, clusters)})
    return rows


def _training_gmacs(training: dict[str, Any] | None) -> float | None:
    """Of fine-tuning, with that of the full model where one was needed; None where an export does not say."""
    if training is None or training["gmacs_of_full"] is None:
        return None
    return float(training["gmacs"]) + float(training["gmacs_of_full"])


def _latency(
    config: EvaluateConfig, model: StatementModel, macs: list[float], split: str, inputs: Inputs, tokenizer: Tokenizer
) -> Latency:
    """Time of statements whose costs are spread as those of the whole split."""
    device, count = next(model.parameters()).device, candidates(config.latency)
    loader = loader_of(inputs, split, "statements", count, tokenizer, count, spread=True)
    batch, _, macs_B = next(judged(model, loader, inputs, device))
    rows = alike(macs, macs_B.tolist(), config.latency.instances)
    return packed_latency(model, alone(batch, rows, inputs.normalise, device), config.latency)


@torch.no_grad()
def judged(
    model: StatementModel, batches: Iterable[ImageTextBatch], inputs: Inputs, device: torch.device
) -> Iterator[tuple[ImageTextBatch, Tensor, Tensor]]:
    """Batches of statements with their (B, 2) scores and (B,) multiply-accumulates; what is trimmed is not computed."""
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(device)
        trimming = model.trimming(batch.token_ids, batch.token_mask)
        methods: list[Intervention] = [] if trimming is None else [trimming]
        scores_B2 = model.classify(inputs.normalise(batch.pixels), batch.token_ids, batch.token_mask, methods)
        decisions = {} if trimming is None else trimming.decisions
        yield batch, scores_B2, model.macs(decisions, units_of(model.backbone, batch.token_mask))


def _interval(values: list[float], groups: list[str]) -> dict[str, float]:
    """Percentages."""
    interval = group_interval(values, groups)
    return {"value": 100 * interval.value, "low": 100 * interval.low, "high": 100 * interval.high}


def _consistency(right: list[float], groups: list[str], clusters: list[str]) -> dict[str, float]:
    """Share of examples of which every picture is judged rightly."""
    all_right: dict[str, float] = defaultdict(lambda: 1.0)
    cluster_of: dict[str, str] = {}
    for hit, group, cluster in zip(right, groups, clusters, strict=True):
        all_right[group] = min(all_right[group], hit)
        cluster_of[group] = cluster
    return _interval(list(all_right.values()), [cluster_of[group] for group in all_right])
