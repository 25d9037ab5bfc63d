"""Recall of image-text retrieval on a split, by pre-trained and by fine-tuned models.

T texts, L text tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import StepLoader
from pipeline.data.sample import EveryImage
from pipeline.data.text import Tokenizer
from pipeline.evaluation.classes import Costs, answered_on, row_of
from pipeline.evaluation.config import EvaluateConfig, Ranking, Row, source_of
from pipeline.evaluation.counted import used_and_left_out
from pipeline.evaluation.scores import Evaluated, Score, percent
from pipeline.evaluation.source import Source
from pipeline.exports import load_classification_model
from pipeline.measure.bootstrap import Series
from pipeline.measure.instances import INSTANCES, Instances, write_instances
from pipeline.measure.outcomes import Outcomes, digest_of, numbered, outcomes_file, write_outcomes
from pipeline.metrics.ranks import recalls
from pipeline.models.backbone import Backbone
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.gallery import Gallery, Methods, encode_split
from pipeline.tasks.retrieval import Ranks, matches, matching_parts, rank_split
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.trim_settle import reached
from pipeline.trimming.cost import CostModel, units_of
from pipeline.trimming.target import Target

Images = Callable[[], StepLoader]
"""Begins to read every image of a split once, this rank's part."""

OF = "of"
"""Where results have how many images a split has, if not all of them were to be ranked."""

_NAMED = ("captions", "keys", "groups", "clusters", "ids")
"""What a batch says of each image in lists."""


def evaluate_retrieval(
    model: Backbone,
    source: Source,
    loader: StepLoader,
    ranking: Ranking,
    process: Process,
    methods: Methods = list,
) -> Evaluated:
    """R@1, R@5 and R@10 both ways and their means.

    Args:
        model: In evaluation mode, on the process's device.
        source: Of the model's input.
        loader: Every image once, this rank's part.
        ranking: Which captions, and how many candidates are matched.
        process: This rank.
        methods: What trims images, texts and pairs; none for the full model.

    Returns:
        Scores: TR is from an image to its best caption, IR from a caption to its image; "R@10" the mean of both ways,
        "mean_recall" of all six. The cost is that of a pair alone with nothing trimmed, both encoders and matching.

    Raises:
        UserError: No image has a caption, or the model gives scores that are no numbers.
    """
    matching = matches(model, ranking.rerank)
    asked = source.normalise, source.tokenize, ranking.batch_size, process, ranking.captions, matching, methods
    gallery = encode_split(model, loader, *asked)
    ranks = rank_split(model, gallery, ranking.rerank, process, methods)
    outcomes = outcomes_of(gallery, ranks)
    cost = CostModel(model, matching_parts(model), None, contrast=True)
    seen, bad = used_and_left_out(loader, process)
    return Evaluated(
        scores=scores_of(outcomes),
        gmacs=(cost.full(units_of(model, gallery.mask_TL)) / 1e9).tolist(),
        samples=seen,
        skipped=bad,
        more={
            "images": len(gallery.images),
            "captions": len(gallery.owner_T),
            "queries": len(gallery.asking),
            **({} if loader.whole else {OF: loader.split_samples}),
        },
        outcomes=outcomes,
        whole=loader.whole,
        digest=digest_of((image.key, *image.captions) for image in gallery.images),
    )


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuned model did on a split, the same on every rank.

    Attributes:
        evaluated: Its scores; costs are those of each caption with its own picture, as decided.
        costs: The same, with those of the full model.
        instances: What was kept of these pairs.
    """

    evaluated: Evaluated
    costs: Costs
    instances: Instances


@torch.no_grad()
def rank_fine_tuned(
    model: RetrievalModel, source: Source, images: Images, ranking: Ranking, process: Process
) -> FineTuned:
    """Ranks a split, and goes through its own pairs once more for what they cost.

    Args:
        model: In evaluation mode, on the process's device; what it trims is not computed.
        source: Of the model's input.
        images: Begins to read the split.
        ranking: Which captions, and how many candidates are matched.
        process: This rank.
    """
    found = evaluate_retrieval(model.backbone, source, images(), ranking, process, model.methods)
    turns = (own_pairs(batch, source, ranking) for batch in images())
    answered, instances = answered_on(model, source, turns, process)
    costs = Costs()
    for one in answered:
        costs.join(one.costs)
    return FineTuned(replace(found, gmacs=[macs / 1e9 for macs in costs.macs]), costs, instances)


def own_pairs(batch: ImageTextBatch, source: Source, ranking: Ranking) -> Iterator[ImageTextBatch]:
    """Each image of a batch with each of its captions, as many pairs at a time as texts are ranked.

    Args:
        batch: Of `EveryImage`.
        source: Tokenizes.
        ranking: Which captions.
    """
    said = [(row, text) for row, texts in enumerate(batch.captions) for text in texts[: ranking.captions]]
    for at in range(0, len(said), ranking.batch_size):
        rows, texts = (list(each) for each in zip(*said[at : at + ranking.batch_size], strict=True))
        ids_BL, mask_BL = source.tokenize(texts)
        named: dict[str, Any] = {name: [getattr(batch, name)[row] for row in rows] for name in _NAMED}
        yield replace(
            batch,
            pixels=batch.pixels[rows],
            token_ids=ids_BL,
            token_mask=mask_BL,
            labels=torch.ones(len(rows), dtype=torch.int64),
            sample_ids=batch.sample_ids[rows],
            draw_seeds=batch.draw_seeds[rows],
            texts=texts,
            told=[{}] * len(rows),
            skipped=[],
            **named,
        )


def ranked(
    config: EvaluateConfig, name: str, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    """A row for each score of a model that was fine-tuned for retrieval; see `pipeline.evaluate`.

    Args:
        config: What of the split is ranked, and how many candidates are matched.
        name: Of the stage that trained the model.
        folder: Its export.
        split: Folder of the split inside the data.
        inputs: Data, loader, normalisation.
        tokenizer: Of the texts.
        stage: Where what became of each image goes, and on which device.

    Raises:
        UserError: The export or the split cannot be used.
    """
    model, described = load_classification_model(folder)
    assert isinstance(model, RetrievalModel)
    model.to(stage.process.torch_device)
    source = source_of(inputs.of_export(described), split, tokenizer, stage)
    images = partial(source.batches, EveryImage(), config.batch_size, stage.process, config.retrieval_pairs)
    found = rank_fine_tuned(model, source, images, config.ranking, stage.process)
    row = {
        **row_of(name, described, split, found.costs),
        "samples": found.evaluated.samples,
        "skipped": found.evaluated.skipped,
        **reached(Target.parse(described["target"]), found.costs.macs, found.costs.full, _untimed),
    }
    if stage.process.is_main:
        path = stage.folder / INSTANCES / f"{name}-{split.replace('/', '-')}.json"
        write_instances(path, row, found.instances, found.costs.macs)
        write_outcomes(outcomes_file(stage.folder, name, split), found.evaluated.digest, found.evaluated.outcomes)
    return told_rows(row, found.evaluated)


def told_rows(row: Row, found: Evaluated) -> list[Row]:
    """A row for each score. The means of one way follow from the three before; a table would not fit on a screen.

    Where not all images were ranked, the rows say of how many they were.
    """
    row = row | {name: found.more[name] for name in (OF,) if name in found.more}
    return [{**row, **asdict(score)} for score in found.scores if not score.metric.endswith(" mean")]


def _untimed() -> NoReturn:
    raise AssertionError("`TrimConfig` refuses times for retrieval")


def outcomes_of(gallery: Gallery, ranks: Ranks) -> list[Outcomes]:
    """By metric whether each image, and each caption, found what it looks for."""
    keys, clusters = ([getattr(image, name) for image in gallery.images] for name in ("key", "cluster"))
    ways: dict[str, dict[str, Series]] = {}
    for way, found, owners in (("TR", ranks.image_Q, gallery.asking), ("IR", ranks.text_T, gallery.owner_T)):
        numbers = owners.tolist()
        names, groups = numbered(keys[number] for number in numbers), [clusters[number] for number in numbers]
        ways[way] = {metric: Series(names=names, values=hits, groups=groups) for metric, hits in recalls(found).items()}
    whole: dict[str, tuple[Series, ...]] = {
        f"{way} {metric}": (each,) for way, of in ways.items() for metric, each in of.items()
    }
    whole["R@10"] = tuple(of["R@10"] for of in ways.values())
    whole |= {f"{way} mean": tuple(of.values()) for way, of in ways.items()}
    whole["mean_recall"] = tuple(each for of in ways.values() for each in of.values())
    return [Outcomes(metric=metric, series=series) for metric, series in whole.items()]


def scores_of(outcomes: Sequence[Outcomes]) -> list[Score]:
    """All scores of a split."""
    return [percent(one.metric, *((each.values, each.groups) for each in one.series)) for one in outcomes]
