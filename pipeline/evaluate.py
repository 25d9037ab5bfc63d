"""The evaluation stage: scores of exported models, with intervals and costs, as rows of results.json."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_prep.files import read_described
from pipeline.captioner import is_captioner
from pipeline.data.sample import EveryImage
from pipeline.data.text import Tokenizer
from pipeline.evaluation.captions import captioned
from pipeline.evaluation.classes import classified
from pipeline.evaluation.config import EvaluateConfig, Row, Trained, source_of
from pipeline.evaluation.retrieval import evaluate_retrieval, ranked, told_rows
from pipeline.exports import load_backbone
from pipeline.measure.outcomes import outcomes_file, write_outcomes
from pipeline.precision import products_in
from pipeline.progress import ProgressFile
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.classes import RETRIEVAL


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
        fine-tuning that it took (None of exports that do not say). Of retrieval that ranked not all images of the
        split, "of" is how many it has.
    """
    tokenizer = inputs.load_tokenizer()
    jobs: list[Callable[[], list[Row]]] = []
    if trained.pretrained is not None:
        for split in config.retrieval_splits:
            jobs.append(partial(_retrieval, config, trained.pretrained, split, inputs, tokenizer, stage))
    for name, folder in trained.trimmed.items():
        for split in config.statement_splits:
            if is_captioner(folder):
                jobs.append(partial(captioned, config, name, folder, split, inputs, stage))
            elif read_described(folder / "config.json")["kind"] == RETRIEVAL.task:
                jobs.append(partial(ranked, config, name, folder, split, inputs, tokenizer, stage))
            else:
                jobs.append(partial(classified, config, name, folder, split, inputs, tokenizer, stage))
    stage.folder.mkdir(parents=True, exist_ok=True)
    progress = ProgressFile(stage.folder / "progress.json", len(jobs), "evaluations")
    rows: list[Row] = []
    for number, job in enumerate(jobs):
        progress.show(number, now=True)
        with products_in(config.precision, stage.process.torch_device):
            rows += job()
    progress.show(len(jobs), now=True)
    return [{**row, "seed": inputs.seed} for row in rows]


def _retrieval(
    config: EvaluateConfig, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    model = load_backbone(folder).to(stage.process.torch_device)
    source = source_of(inputs, split, tokenizer, stage)
    found = evaluate_retrieval(
        model,
        source,
        source.batches(EveryImage(), config.batch_size, stage.process, config.retrieval_pairs),
        config.ranking,
        stage.process,
    )
    if stage.process.is_main:
        # Not the means of several recalls: the names of all take as much room each time.
        kept = [one for one in found.outcomes if "@" in one.metric]
        write_outcomes(outcomes_file(stage.folder, "pretrain", split), found.digest, kept)
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
    return told_rows(row, found)
