"""Recall of image-text retrieval on a split.

T texts, L text tokens.
"""

from collections.abc import Sequence

from pipeline.data.loader import StepLoader
from pipeline.evaluation.scores import Evaluated, Score, percent
from pipeline.evaluation.source import Source
from pipeline.gathering import all_objects
from pipeline.measure.bootstrap import Series
from pipeline.measure.outcomes import Outcomes, digest_of, numbered
from pipeline.metrics.ranks import recalls
from pipeline.models.backbone import Backbone
from pipeline.process import Process
from pipeline.tasks.gallery import Gallery, encode_split
from pipeline.tasks.retrieval import Ranks, matches, matching_parts, rank_split
from pipeline.trimming.cost import CostModel, units_of


def evaluate_retrieval(
    model: Backbone,
    source: Source,
    loader: StepLoader,
    *,
    batch_size: int,
    rerank: int,
    captions: int | None,
    process: Process,
) -> Evaluated:
    """R@1, R@5 and R@10 both ways and their means.

    Args:
        model: In evaluation mode, on the process's device.
        source: Of the model's input.
        loader: Every image once, this rank's part.
        batch_size: Texts at once.
        rerank: Candidates of each query that matching re-ranks; 0 ranks by features alone.
        captions: Of each image, the first ones; None for all.
        process: This rank.

    Returns:
        Scores: TR is from an image to its best caption, IR from a caption to its image; "R@10" the mean of both ways,
        "mean_recall" of all six. The cost is that of a pair alone, both encoders and matching.

    Raises:
        UserError: No image has a caption, or the model gives scores that are no numbers.
    """
    gallery = encode_split(
        model, loader, source.normalise, source.tokenize, batch_size, process, captions, matches(model, rerank)
    )
    ranks = rank_split(model, gallery, rerank, process)
    outcomes = outcomes_of(gallery, ranks)
    cost = CostModel(model, matching_parts(model), None, contrast=True)
    seen, bad = (sum(counts) for counts in zip(*all_objects(process, (loader.seen, loader.bad)), strict=True))
    return Evaluated(
        scores=scores_of(outcomes),
        gmacs=(cost.full(units_of(model, gallery.mask_TL)) / 1e9).tolist(),
        samples=seen,
        skipped=bad,
        more={"images": len(gallery.images), "captions": len(gallery.owner_T), "queries": len(gallery.asking)},
        outcomes=outcomes,
        digest=digest_of((image.key, *image.captions) for image in gallery.images),
    )


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
