"""Models from the export folders that training stages leave."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_described
from pipeline.checkpoint import load_weights
from pipeline.data.sample import TextKind
from pipeline.data.text import Tokenizer
from pipeline.generation import CaptionConfig
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.answer_list import ANSWERS, check_fits, check_learned, read_answers
from pipeline.tasks.classes import ANSWERING, STATEMENT, TASKS, TEXTS, Captions, Classes, classes_of
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.fine_tuned import fine_tuned
from pipeline.tasks.generative_vqa import RankedAnswers
from pipeline.trimming.trimmers import Policy, TrimmerConfig, Trimmers
from pipeline.trimming.vision_only import ReducedVision, ReductionConfig
from pipeline.weights.loaded import without_heads
from pipeline.weights.mapping import fill
from pipeline.weights.positions import fit_positions
from pipeline.weights.sizes import POSITIONS

AS_WRITTEN = "as written"
"""How a model that ranks answers learned them; older exports do not say, and learned them cleaned as texts are."""
BEGINNINGS = ("backbone", "blip_retrieval")
"""Kinds of exports that fine-tuning can begin from."""
_SAID = {"captioning": "given", "vqa_generative": "candidates"}
"""What the config.json of a kind must say of its decoder."""
_FINE_TUNED = "a fine-tuned model"


def load_backbone(folder: Path, image_size: int | None = None) -> Backbone:
    """The model of a pre-training stage's export, in evaluation mode.

    An imported BLIP for retrieval, all of BLIP that transformers has a class for, is taken for a pre-trained one: the
    decoder that it lacks stays as drawn.

    Args:
        folder: The export.
        image_size: Side of the square pictures that it is to take, its positions interpolated; None leaves them alone.

    Raises:
        UserError: The folder holds something else, or the size is no whole number of patches.
    """
    tensors, described = _load(folder, BEGINNINGS, "a pre-trained backbone")
    drawn = ("text_decoder.",) if described["kind"] == "blip_retrieval" else ()
    with _named(folder):
        found = ModelConfig.from_dict(described.get("model", {}))
        model = build_model(found.at_image_size(image_size))
        own, _ = without_heads(tensors)
        fill(model, fit_positions(own, POSITIONS, model.config.vision.grid, found.vision.grid), drawn)
    return model.eval()


def load_classification_model(folder: Path) -> tuple[ClassificationModel, dict[str, Any]]:
    """The model of a trimming stage's export, in evaluation mode, and its config.json.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = _load(folder, TASKS, _FINE_TUNED)
    with _named(folder):
        model = build_classification_model(described, _classes(folder, described))
        _check_answers(model, tensors)
        if described["kind"] in ANSWERING:
            check_learned(model.classes.names, described.get("answer_list"))
        fill(model, _decided_on(model, tensors))
    return model.eval(), described


def _decided_on(model: ClassificationModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the trimmers of BLIP's text alone, which older exports have even where nothing looks at that text.

    No answer depends on them; without them such a model costs less than it was settled on.
    """
    if not model.backbone.fuses_from_words or not isinstance(model.trimmers, Trimmers):
        return tensors
    known = model.state_dict()
    return {name: each for name, each in tensors.items() if name in known or not name.startswith("trimmers.text_")}


def _classes(folder: Path, described: dict[str, Any]) -> Classes:
    """What an export's model tells apart."""
    if described["kind"] == "captioning":
        return captions_of(caption_config(described), int(described["given"]))
    if described["kind"] == "vqa_generative":
        words = Tokenizer.from_pretrained(folder)
        words = words.as_written() if described.get("answers") == AS_WRITTEN else words
        return RankedAnswers.of(read_answers(folder), words, int(described["candidates"]))
    return classes_of(described["kind"], read_answers(folder) if described["kind"] == "vqa" else ())


def caption_config(described: dict[str, Any]) -> CaptionConfig:
    """How an export's model is to tell of pictures; the published way where its config.json does not say."""
    return CaptionConfig(**described.get("captions", {}))


def captions_of(config: CaptionConfig, given: int) -> Captions:
    """The words of captions.

    Args:
        config: How they are searched for.
        given: Tokens of [DEC] and the prompt.
    """
    return Captions("captioning", (), given, config.beams)


def task_text(folder: Path) -> TextKind:
    """What the task of a trimming stage's export reads of a sample.

    Raises:
        UserError: The folder holds something else.
    """
    kind: Any = read_described(folder / "config.json").get("kind")
    if kind not in TEXTS:
        raise _other_kind(folder, kind, _FINE_TUNED)
    return TEXTS[kind]


def _check_answers(model: ClassificationModel, tensors: Mapping[str, Tensor]) -> None:
    """Refuses an answer list that is not the head's; a decoder has none."""
    if model.classes.task != "vqa":
        return
    own = {name: len(tensor) for name, tensor in model.state_dict().items() if name.startswith("cls_head.")}
    last = list(own)[-1]
    if last in tensors:
        check_fits(ANSWERS, model.classes.names, len(tensors[last]), "export it again")


def method_of(described: dict[str, Any]) -> str:
    """The name of the method that a model was fine-tuned with; ``full`` for none."""
    if "method" in described:
        return str(described["method"]["name"])
    return "full" if described["trimmers"] is None else "smarttrim"


def describe_method(model: ClassificationModel, name: str) -> dict[str, Any]:
    """What a config.json says of how a model is trimmed; `build_classification_model` reads it."""
    method: dict[str, Any] = {"name": name, "whole": None if model.whole is None else asdict(model.whole)}
    trimmers = None
    if isinstance(model.trimmers, Trimmers):
        trimmers = asdict(model.trimmers.config)
        method |= {"policy": asdict(model.trimmers.policy), "share": model.trimmers.share}
        method["together"] = model.trimmers.together
    elif isinstance(model.trimmers, ReducedVision):
        method |= {"reduction": asdict(model.trimmers.config), "share": model.trimmers.share}
    pruning = None if model.pruning is None else asdict(model.pruning.elip)
    pair = {} if model.backbone.pair is None else {"pair": model.backbone.pair}
    return {"trimmers": trimmers, "method": method, "pruning": pruning, **pair}


def build_classification_model(described: dict[str, Any], classes: Classes = STATEMENT) -> ClassificationModel:
    """The model of a config.json, without its weights; older ones name no method, for there was only SmartTrim.

    Args:
        described: What stands in the file.
        classes: What the head tells apart.

    Raises:
        UserError: Sizes are missing.
    """
    backbone = build_model(ModelConfig.from_dict(described.get("model", {})))
    method: dict[str, Any] = described.get("method", {})
    try:
        trimmers: TrimmerConfig | ReductionConfig | None = None
        if described["trimmers"] is not None:
            trimmers = TrimmerConfig(**described["trimmers"])
        elif "reduction" in method:
            reduction = method["reduction"]
            trimmers = ReductionConfig(**{**reduction, "layers": tuple(reduction["layers"])})
        written: dict[str, Any] = method.get("policy", {})
        written = {"trims_guide": True} | written  # older ones do not say; all that guided was trimmed
        policy = Policy(**written | ({"groups": tuple(written["groups"])} if "groups" in written else {}))
        share = float(method.get("share", 1.0))
        pruning = _kept_pruning(described.get("pruning"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"its config.json does not tell how it is trimmed and pruned ({error}); export it again"
        ) from error
    whole = method.get("whole")
    whole = None if whole is None else ModelConfig.from_dict(whole)
    together = bool(method.get("together", False))
    decodes = isinstance(classes, Captions | RankedAnswers)
    more: dict[str, Any] = (
        {} if decodes else {"whole": whole, "pruning": pruning, "together": together, "pair": described.get("pair")}
    )
    model = fine_tuned(backbone, trimmers, policy, classes=classes, **more)
    if model.trimmers is not None:
        model.trimmers.set_share(share)
    return model


def _kept_pruning(described: dict[str, Any] | None) -> ElipConfig | None:
    if described is None:
        return None
    tables = {name: tuple(described[name]) for name in ("depths", "ratios")}
    return ElipConfig(**{**described, **tables})


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Puts the folder's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _other_kind(folder: Path, kind: Any, wanted: str) -> UserError:
    where = " (stages/trim-.../export of the same run)" if (kind, wanted) == ("backbone", _FINE_TUNED) else ""
    return UserError(f"{folder} holds a {kind!r} model; {wanted} is wanted{where}")


def _load(folder: Path, kinds: Collection[str], wanted: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, described = load_weights(folder)
    kind = described.get("kind")
    if kind not in kinds:
        raise _other_kind(folder, kind, wanted)
    if kind in _SAID and _SAID[kind] not in described:
        raise UserError(f"{folder}/config.json does not say {_SAID[kind]!r}; copy or export the folder again")
    return tensors, described
