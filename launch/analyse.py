"""`trimline analyse WHAT RUN`: analyses of a trained model, from its run folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError
from launch.answers import Answer
from launch.config import RunConfig
from launch.reading import read_config
from launch.report.table import aligned
from pipeline.data.batch import ImageTextBatch
from pipeline.evaluate import loader_of
from pipeline.exports import load_backbone
from pipeline.measure.leak import Probe, measure_leak
from pipeline.objectives.mlm import Vocabulary
from pipeline.setup import Inputs

BATCH = 64


def leak_command(run: Path, split: str | None, samples: int) -> Answer:
    """`trimline analyse leak RUN`.

    Raises:
        UserError: The folder holds no pre-trained model, or one that text-guided pruning has no part in.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml; give the `out` of a `trimline run`")
    if samples < 2:
        raise UserError(f"--samples {samples} must be at least 2")
    config = read_config(RunConfig, [run / "config.yaml"], [])
    inputs = Inputs(
        data=run / "data", tokenizer=run / "tokenizer", loader=config.loader, engine=config.engine, seed=config.seed
    )
    tokenizer = inputs.load_tokenizer()
    splits = config.evaluate.retrieval_splits or config.evaluate.statement_splits
    chosen = split or next(iter(splits), "val")
    if not (inputs.data / chosen).is_dir():
        raise UserError(
            f"{run} has no split {chosen!r}; it has {', '.join(sorted(p.name for p in inputs.data.iterdir()))}"
        )
    probe = Probe(
        model=load_backbone(run / "stages" / "pretrain" / "export"),
        pruning=config.pretrain.pruning,
        words=Vocabulary(mask=tokenizer.mask_id, size=tokenizer.vocab_size),
        mask_share=config.pretrain.objectives.mask_share,
        normalise=inputs.normalise,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe.model.to(device)

    def batches() -> Iterator[ImageTextBatch]:
        for batch in loader_of(inputs, chosen, "captions", BATCH, tokenizer, samples):
            yield batch.to(device)

    rows = measure_leak(probe, batches())
    return 0, {"run": str(run), "split": chosen, "rows": rows}, _text(chosen, rows)


def _text(split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [["task", "images pruned by", "metric", "value", "from the first, paired", "samples"]]
    for row in rows:
        value = f"{row['value']:.3f}" if row["metric"].startswith("loss") else f"{row['value']:.1f}%"
        digits = 3 if row["metric"].startswith("loss") else 1
        low, high = f"{row['difference_low']:+.{digits}f}", f"{row['difference_high']:+.{digits}f}"
        change = f"{row['difference']:+.{digits}f} ({low} to {high})"
        cells.append([row["task"], row["pruned_by"], row["metric"], value, change, str(row["samples"])])
    return "\n".join([f"split {split}, 95% intervals over samples", *aligned(cells, left=3)])
