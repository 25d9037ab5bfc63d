"""Recall of image-text retrieval on a split.

T texts, L text tokens.
"""

from pipeline.data.loader import StepLoader
from pipeline.evaluation.scores import Evaluated, Score, Values, percent
from pipeline.evaluation.source import Source
from pipeline.gathering import all_objects
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
    cost = CostModel(model, matching_parts(model), None, contrast=True)
    seen, bad = (sum(counts) for counts in zip(*all_objects(process, (loader.seen, loader.bad)), strict=True))
    return Evaluated(
        scores=scores_of(gallery, ranks),
        gmacs=(cost.full(units_of(model, gallery.mask_TL)) / 1e9).tolist(),
        samples=seen,
        skipped=bad,
        more={"images": len(gallery.images), "captions": len(gallery.owner_T), "queries": len(gallery.asking)},
    )


def scores_of(gallery: Gallery, ranks: Ranks) -> list[Score]:
    """All scores of the ranks of a split."""
    clusters = [image.cluster for image in gallery.images]
    asks_image = [clusters[number] for number in gallery.asking.tolist()]
    asks_text = [clusters[number] for number in gallery.owner_T.tolist()]
    ways: dict[str, dict[str, Values]] = {
        way: {metric: (hits, asks) for metric, hits in recalls(found).items()}
        for way, found, asks in (("TR", ranks.image_Q, asks_image), ("IR", ranks.text_T, asks_text))
    }
    scores = [percent(f"{way} {metric}", each) for way, of in ways.items() for metric, each in of.items()]
    scores.append(percent("R@10", *(of["R@10"] for of in ways.values())))
    scores += [percent(f"{way} mean", *of.values()) for way, of in ways.items()]
    return [*scores, percent("mean_recall", *(each for of in ways.values() for each in of.values()))]
