"""Evaluation of captioners: every picture of a split is told of by beam search.

B pictures.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch

from data_prep.errors import UserError
from data_prep.files import read_described
from pipeline.captioner import Captioner
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import StepLoader
from pipeline.data.sample import EveryImage
from pipeline.evaluation.classes import Costs, judged, predictions_file, row_of, rows_of, warn_incomplete
from pipeline.evaluation.config import EvaluateConfig, Row, source_of
from pipeline.evaluation.counted import used_and_left_out
from pipeline.evaluation.source import Source
from pipeline.evaluation.unscored import note_unscored
from pipeline.measure.outcomes import digest_of, outcomes_file, write_outcomes
from pipeline.metrics.caption_tally import CaptionTally
from pipeline.metrics.captions import missing_for_captions
from pipeline.metrics.tasks import Score, Told
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.gallery import check_finite
from pipeline.together import in_split_order, together
from pipeline.trim_settle import reached
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target

log = logging.getLogger(__name__)

PICTURES = EveryImage(label="domain")
"""What is read of a split: its pictures, those of which nobody tells too, and NoCaps' domains."""


@dataclass(frozen=True)
class ToldSplit:
    """What a captioner told of a split, the same on every rank.

    Attributes:
        tally: Its captions.
        costs: Of each picture with its caption, in the order of the split.
        digest: Tells these pictures and the annotators' captions from those of other data.
        samples: Pictures that were used.
        skipped: Those that could not be.
        left_out: Those that were left out when the split was written.
    """

    tally: CaptionTally
    costs: Costs
    digest: str
    samples: int
    skipped: int
    left_out: int = 0

    def costs_of(self, domain: str) -> Costs:
        """Of a domain's pictures alone."""
        return self.costs.only([self.tally.domains.get(name) == domain for name in self.tally.found])


@dataclass(frozen=True)
class _Batch:
    """A batch without its pictures, and what was told of it."""

    batch: ImageTextBatch
    told: list[str]
    costs: Costs


def told_on(captioner: Captioner, source: Source, loader: StepLoader, process: Process) -> ToldSplit:
    """Has a captioner tell of all pictures of a split; all ranks call it together.

    Args:
        captioner: On the process's device.
        source: The split as the model takes it.
        loader: This rank's part of it, with `PICTURES`.
        process: This rank.

    Raises:
        UserError: Nothing could be used, results could not be told apart, or a score is not finite.
    """
    parts = together(process, lambda: _own_part(captioner, source, loader), source.split)
    batches = [one for one in in_split_order(parts) if one is not None]
    if not batches:
        raise UserError(f"{source.split}: no picture could be used; look at it with `trimline verify`")
    tally, costs = CaptionTally(), Costs()
    for one in batches:
        tally.add(one.batch, one.told)
        costs.join(one.costs)
    seen, bad = used_and_left_out(loader, process)
    asked = (zip(one.batch.keys, one.batch.ids, one.batch.captions, strict=True) for one in batches)
    digest = digest_of((key, name, *said) for batch in asked for key, name, said in batch)
    return ToldSplit(tally, costs, digest, seen, bad, loader.left_out)


def _own_part(captioner: Captioner, source: Source, loader: StepLoader) -> list[_Batch | None]:
    part, model = list[_Batch | None](), captioner.model
    for batch in loader:
        if not len(batch):
            part.append(None)
            continue
        told = captioner.tell(source.normalise(batch.pixels.to(captioner.device)))
        check_finite(told.finite_B, batch.keys.__getitem__, "scores of words")
        units, costs = model.units(told), Costs()
        costs.add(model, units, model.macs(told.decisions, units))
        bare = replace(batch, pixels=torch.empty(len(batch), 0))
        part.append(_Batch(bare, captioner.words(told), costs))
    return part


@dataclass(frozen=True)
class ToldWords:
    """Words that a captioner told behind the right ones, the same on every rank.

    Attributes:
        right: How many were those that annotators wrote.
        words: Of so many.
        costs: Of each caption.
    """

    right: int
    words: int
    costs: Costs


def words_on(model: ClassificationModel, source: Source, loader: StepLoader, process: Process) -> ToldWords:
    """Has a captioner tell each word of captions behind the right ones; all ranks call it together.

    Args:
        model: In evaluation mode, on the process's device.
        source: The split with its captions behind the model's prompt (`Tokenizer.behind`).
        loader: This rank's part of it, with captions.
        process: This rank.

    Raises:
        UserError: Nothing could be used, or a score is not finite.
    """

    def own() -> ToldWords:
        right, words, costs = 0, 0, Costs()
        for batch, scores_MV, macs_B, _ in judged(model, loader, source.normalise, process.torch_device):
            right_M = scores_MV.argmax(1) == model.classes.targets(batch)
            right, words = right + int(right_M.sum()), words + len(right_M)
            costs.add(model, units_of(model.backbone, batch.token_mask), macs_B)
        return ToldWords(right, words, costs)

    parts, costs = together(process, own, source.split), Costs()
    for part in parts:
        costs.join(part.costs)
    words = sum(part.words for part in parts)
    if not words:
        raise UserError(f"{source.split}: no caption could be used; look at it with `trimline verify`")
    return ToldWords(sum(part.right for part in parts), words, costs)


def told_scores_of(told: ToldSplit, process: Process) -> dict[str, Told]:
    """The captions' scores by domain, "" for all; computed by one rank for all.

    Raises:
        UserError: pycocoevalcap or Java is missing.
    """
    return together(process, lambda: told.tally.scores() if process.is_main else {}, "captions")[0]


def captioned(config: EvaluateConfig, name: str, folder: Path, split: str, inputs: Inputs, stage: Stage) -> list[Row]:
    """A row for each score of a captioner on a split; see `pipeline.evaluate`.

    Where the programs that score captions are missing, the captions are written, and there is no row.

    Args:
        config: Batch size.
        name: Of the stage that trained the model.
        folder: Its export.
        split: Folder of the split inside the data.
        inputs: Data, loader, normalisation.
        stage: Where the result file goes, and on which device.

    Raises:
        UserError: The export or the split cannot be used, or results could not be told apart.
    """
    captioner = Captioner.from_pretrained(folder, device=stage.process.torch_device)
    source = source_of(inputs.sized_for(captioner.model.backbone.config), split, captioner.tokenizer, stage)
    loader = source.batches(PICTURES, config.batch_size, stage.process)
    with torch.inference_mode():
        told = told_on(captioner, source, loader, stage.process)
    described = read_described(folder / "config.json")

    def row(domain: str, scores: list[Score]) -> Row:
        costs = told.costs_of(domain) if domain else told.costs
        counts = {"samples": scores[0].samples if scores else told.samples}
        if not domain:  # what could not be used has not said of which domain it is
            counts["skipped"] = told.skipped
        shared = row_of(name, described, _part(split, domain), costs)
        return {**shared, **counts, **reached(Target.parse(described["target"]), costs.macs, costs.full, _untimed)}

    # One rank looks for the programs, writes and scores: others might find something else.
    scores = together(stage.process, lambda: _scored(told, stage, name, split), stage.folder)[0]
    return [one for domain, found in scores.items() for one in rows_of(row(domain, found), found, stage)]


def _scored(told: ToldSplit, stage: Stage, name: str, split: str) -> dict[str, list[Score]]:
    """Rank 0's part: writes the captions, scores them by domain, and keeps what each picture adds to a mean.

    Nothing is scored where the programs for it are missing.
    """
    if not stage.process.is_main:
        return {}
    told.tally.write(predictions_file(stage, name, split, told.tally.ending))
    warn_incomplete(name, split, told.skipped, told.left_out)
    missing = missing_for_captions()
    if missing is not None:
        log.warning("%s on %s is not scored: %s", name, split, missing)
        # Who builds the stages may be on another machine, which has the programs and sees no reason to begin anew.
        again = f"on the machine that evaluates; then remove stages/evaluate-{name} and run the same command again"
        note_unscored(stage.folder, name, split, f"{missing} {again}")
        return {}
    judged = told.tally.scores()
    for domain, each in judged.items():
        write_outcomes(outcomes_file(stage.folder, name, _part(split, domain)), told.digest, each.outcomes)
    return {domain: each.scores for domain, each in judged.items()} or {"": []}


def _part(split: str, domain: str) -> str:
    """What the rows of a domain have as their split; of all pictures the split itself."""
    return f"{split} {domain}".strip()


def _untimed() -> NoReturn:
    raise AssertionError("`TrimConfig` refuses times for captioning")
