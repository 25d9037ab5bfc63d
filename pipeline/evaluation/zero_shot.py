"""Zero-shot classification: the class whose prompts' features lie nearest to the image's (Radford et al. 2021).

B batch, I images, C classes, M templates, E embedding width.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.data.loader import StepLoader
from pipeline.data.shards import ShardFolder
from pipeline.evaluation.counted import used_and_left_out
from pipeline.evaluation.scores import Evaluated, percent
from pipeline.evaluation.source import Source
from pipeline.gathering import assemble
from pipeline.measure.flops import LayerTokens, linear_macs, vision_macs
from pipeline.measure.outcomes import digest_of, numbered
from pipeline.metrics.ranks import ranks_of
from pipeline.metrics.result_files import first_few
from pipeline.metrics.tasks import outcomes_of
from pipeline.models.backbone import Backbone
from pipeline.process import Process
from pipeline.tasks.gallery import Tokenize, check_finite
from pipeline.together import together

PLACE = "{}"
"""Where a template takes the class's name."""

TEMPLATES = ("a photo of a {}.",)
"""CLIP's own first one."""

Label = str | int


class _Labelled(NamedTuple):
    sample: int
    key: str
    cluster: str
    labels: tuple[Label, ...]


def evaluate_zero_shot(
    model: Backbone,
    source: Source,
    loader: StepLoader,
    *,
    field: str,
    classes: Sequence[str],
    templates: Sequence[str],
    batch_size: int,
    process: Process,
) -> Evaluated:
    """Accuracy; an image with several labels is right with any of them, as in ImageNet's "real" labels.

    Args:
        model: With contrastive features, in evaluation mode, on the process's device.
        source: Of the model's input.
        loader: `EveryImage(label=field)` of it, this rank's part.
        field: Of the labels, for errors.
        classes: Names; a label is one of them, or a number that counts them from 0. Empty for all labels there are.
        templates: With `PLACE` in each.
        batch_size: Prompts at once.
        process: This rank.

    Returns:
        Scores, a class of the same score counting against the model; `more` has what guessing would reach. The cost is
        that of an image: prompts are encoded once for all.

    Raises:
        UserError: An image has no label, or one that is no class.
    """
    features: list[Tensor] = []
    parts = together(process, lambda: _read(model, source, loader, process, features), source.split)
    images = sorted(image for part in parts for image in part)
    _check_labelled(images, field, source)
    names = list(classes) or _names(images, field)
    numbers = {image.sample: _numbers(image, names, field) for image in images}
    prompt_CE = class_features(model, source.tokenize, names, templates, batch_size, process.torch_device)
    own = parts[process.rank]
    right_BC = torch.zeros(len(own), len(names), dtype=torch.bool)
    for row, image in enumerate(own):
        right_BC[row, numbers[image.sample]] = True
    image_BE = torch.cat([prompt_CE[:0], *features])
    with torch.autocast(process.torch_device.type, enabled=False):
        score_BC = image_BE @ prompt_CE.T
    place_of = {image.sample: place for place, image in enumerate(images)}
    places = torch.tensor([place_of[image.sample] for image in own], dtype=torch.int64, device=score_BC.device)
    sound_I = assemble(process, score_BC.isfinite().all(1), places, len(images))
    check_finite(sound_I, lambda at: images[at].key, "scores of classes")
    rank_I = assemble(process, ranks_of(score_BC, right_BC.to(score_BC.device)), places, len(images))
    keys, clusters = numbered(image.key for image in images), [image.cluster for image in images]
    recalled = {"accuracy": 1, "top-5 accuracy": 5}
    hits = {metric: (rank_I < k).float().tolist() for metric, k in recalled.items() if k < len(names)}
    outcomes = [outcomes_of(metric, dict(zip(keys, of, strict=True)), clusters) for metric, of in hits.items()]
    seen, bad = used_and_left_out(loader, process)
    guessed = sum(len(set(of)) for of in numbers.values()) / len(names) / len(images)
    return Evaluated(
        scores=[percent(metric, (values, clusters)) for metric, values in hits.items()],
        gmacs=[_image_macs(model) / 1e9] * len(images),
        samples=seen,
        skipped=bad,
        more={"classes": len(names), "templates": len(templates), "accuracy_of_guessing": 100 * guessed},
        outcomes=outcomes,
        # Other classes are another question, also of the same images.
        digest=digest_of([tuple(names), *((image.key, *map(str, image.labels)) for image in images)]),
    )


@torch.no_grad()
def class_features(
    model: Backbone,
    tokenize: Tokenize,
    classes: Sequence[str],
    templates: Sequence[str],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """(C, E) of unit length: the mean of the features of a class's prompts, each of unit length before.

    Args:
        model: With contrastive features.
        tokenize: Texts -> ids and mask.
        classes: C names.
        templates: M, with `PLACE` in each.
        batch_size: Prompts at once.
        device: Of the model.
    """
    prompts = [template.replace(PLACE, name) for name in classes for template in templates]
    parts = []
    for begin in range(0, len(prompts), batch_size):
        ids_BL, mask_BL = tokenize(prompts[begin : begin + batch_size])
        parts.append(model.text_feature(model.encode_text(ids_BL.to(device), mask_BL.to(device))))
    feature_CME = torch.cat(parts).unflatten(0, (len(classes), len(templates)))
    return F.normalize(feature_CME.mean(1), dim=-1)


@torch.no_grad()
def _read(
    model: Backbone, source: Source, loader: StepLoader, process: Process, features: list[Tensor]
) -> list[_Labelled]:
    """Encodes this rank's images into `features`, and says which they are."""
    found: list[_Labelled] = []
    for batch in loader:
        if not len(batch):
            continue
        pixels = source.normalise(batch.pixels.to(process.torch_device))
        features.append(model.image_feature(model.encode_image(pixels)))
        labels = [tuple(json.loads(text)) for text in batch.texts]
        found += map(_Labelled, batch.sample_ids.tolist(), batch.keys, batch.clusters, labels)
    return found


def _check_labelled(images: Sequence[_Labelled], field: str, source: Source) -> None:
    if not images:
        raise UserError(f"{source.split}: no image could be read; look at it with `trimline verify`")
    without = [image.key for image in images if not image.labels]
    if not without:
        return
    known = ", ".join(sorted(ShardFolder(source.split).read(0).fields))
    raise UserError(
        f"{source.split}: {len(without)} of {len(images)} images have no label in --label-field {field}: "
        f"{first_few(without, len(without))}; the first sample's JSON has the fields {known}"
    )


def _names(images: Sequence[_Labelled], field: str) -> list[str]:
    """All labels that there are."""
    labels = {label for image in images for label in image.labels}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if numbers:
        raise UserError(
            f"--label-field {field} holds numbers such as {numbers[0]}: name the classes with --classes FILE, a line "
            "each in the order of the numbers"
        )
    names = sorted(map(str, labels))
    if len(names) < 2:
        raise UserError(f"--label-field {field} is {names[0]!r} everywhere: two classes at least are needed")
    return names


def _numbers(image: _Labelled, names: Sequence[str], field: str) -> list[int]:
    """The classes that are right for an image."""
    numbers = []
    for label in image.labels:
        number = label if isinstance(label, int) else names.index(label) if label in names else -1
        if not 0 <= number < len(names):
            raise UserError(
                f"{image.key}: {field} is {label!r}, which is none of the {len(names)} classes of --classes: add it"
            )
        numbers.append(number)
    return numbers


def _image_macs(model: Backbone) -> int:
    tokens = model.config.vision.patches + 1
    layers = [LayerTokens(tokens, tokens)] * len(model.visual_encoder.steps)
    return vision_macs(model.visual_encoder, layers) + linear_macs(model.vision_proj)
